// Locals as a tree: a value that has parts opens on click, from the heap table in the page.
(function () {
    "use strict";

    const trace = window.celeryTrace;
    const data = trace.data("failure-heap");
    const heap = data ? data.heap : [];

    // A node is an array without its trailing defaults; see celery_trace.model.Node.
    function node(ref) {
        const row = heap[ref];
        if (!row) { return null; }
        const get = function (index, otherwise) { return row[index] === undefined ? otherwise : row[index]; };
        return {
            type: row[0], kind: row[1], value: get(2, null), items: get(3, []), names: get(4, []),
            length: get(5, -1), cut: get(6, 0), form: get(7, ""), note: get(8, "")
        };
    }

    function shortType(type) { return type.replace(/^builtins\./, ""); }

    function plain(value) {
        if (value === null) { return "None"; }
        if (value === true) { return "True"; }
        if (value === false) { return "False"; }
        if (typeof value === "string") { return JSON.stringify(value); }
        return String(value);
    }

    const BRACKETS = {list: ["[", "]"], tuple: ["(", ")"], set: ["{", "}"], frozenset: ["frozenset({", "})"], deque: ["deque([", "])"], dict: ["{", "}"]};

    function summary(found) {
        if (!found) { return "not kept"; }
        if (found.kind === "plain") { return plain(found.value); }
        if (found.kind === "text") { return String(found.value); }
        if (found.kind === "redacted") { return "redacted"; }
        if (found.kind === "absent") { return "cut off"; }
        const size = found.length >= 0 ? found.length : found.kind === "dict" ? found.items.length / 2 : found.items.length;
        if (BRACKETS[found.kind]) {
            return BRACKETS[found.kind][0] + (size ? size + (size === 1 ? " item" : " items") : "") + BRACKETS[found.kind][1];
        }
        return "<" + shortType(found.type) + ">" + (found.form ? " " + found.form : "");
    }

    function element(tag, name, text) {
        const made = document.createElement(tag);
        if (name) { made.className = name; }
        if (text !== undefined) { made.textContent = trace.visible(text); }
        return made;
    }

    function children(found) {
        const rows = [];
        if (found.kind === "dict") {
            for (let at = 0; at + 1 < found.items.length; at += 2) {
                const key = node(found.items[at]);
                rows.push([summary(key), found.items[at + 1]]);
            }
        } else if (found.kind === "object") {
            found.items.forEach(function (ref, at) { rows.push([found.names[at] || "?", ref]); });
        } else {
            found.items.forEach(function (ref, at) { rows.push([String(at), ref]); });
        }
        return rows;
    }

    function branch(label, ref, above) {
        const found = node(ref);
        const item = element("li");
        item.setAttribute("role", "treeitem");
        const line = element("div", "tr-tree-line");
        line.appendChild(element("span", "tr-tree-key", label));
        const value = element("code", "tr-tree-value", summary(found));
        if (found && found.kind === "redacted") { value.className = "tr-redacted"; }
        line.appendChild(value);
        if (found && found.kind !== "redacted") { line.appendChild(element("span", "tr-tree-type", shortType(found.type))); }
        if (found && found.cut) { line.appendChild(element("span", "tr-cut", found.cut.toLocaleString() + " cut")); }
        if (found && found.note) { line.appendChild(element("span", "tr-cut", found.note)); }
        item.appendChild(line);
        item.tabIndex = -1;
        if (found && found.items.length) {
            if (above.includes(ref)) {
                line.appendChild(element("span", "tr-cut", "seen above: it refers to itself"));
            } else {
                item.setAttribute("aria-expanded", "false");
                item.trace = {ref: ref, above: above};
            }
        }
        return item;
    }

    function open(item, wanted) {
        if (!item.hasAttribute("aria-expanded")) { return; }
        item.setAttribute("aria-expanded", wanted ? "true" : "false");
        let group = item.querySelector(":scope > ul");
        if (wanted && !group) {
            group = element("ul");
            group.setAttribute("role", "group");
            const above = item.trace.above.concat([item.trace.ref]);
            children(node(item.trace.ref)).forEach(function (row) { group.appendChild(branch(row[0], row[1], above)); });
            item.appendChild(group);
        }
        if (group) { group.hidden = !wanted; }
    }

    function shown(tree) {
        return Array.from(tree.querySelectorAll('[role="treeitem"]')).filter(function (item) { return item.offsetParent !== null; });
    }

    function go(tree, item) {
        tree.querySelectorAll('[tabindex="0"]').forEach(function (other) { other.tabIndex = -1; });
        item.tabIndex = 0;
        item.focus();
    }

    function plant(row) {
        const tree = element("ul", "tr-tree");
        tree.setAttribute("role", "tree");
        tree.setAttribute("aria-label", "Value of " + row.querySelector("th").textContent);
        const root = branch(row.querySelector("th").textContent, Number(row.dataset.ref), []);
        root.tabIndex = 0;
        tree.appendChild(root);
        open(root, true);
        tree.addEventListener("click", function (event) {
            const item = event.target.closest('[role="treeitem"]');
            if (item && !window.getSelection().toString()) { open(item, item.getAttribute("aria-expanded") !== "true"); go(tree, item); }
        });
        tree.addEventListener("keydown", function (event) {
            const item = event.target.closest('[role="treeitem"]');
            const items = shown(tree);
            const at = items.indexOf(item);
            const expanded = item.getAttribute("aria-expanded");
            const parent = item.parentElement.closest('[role="treeitem"]');
            if (event.key === "ArrowDown" && items[at + 1]) { go(tree, items[at + 1]); }
            else if (event.key === "ArrowUp" && items[at - 1]) { go(tree, items[at - 1]); }
            else if (event.key === "Home") { go(tree, items[0]); }
            else if (event.key === "End") { go(tree, items[items.length - 1]); }
            else if (event.key === "ArrowRight" && expanded === "false") { open(item, true); }
            else if (event.key === "ArrowRight" && expanded === "true" && items[at + 1]) { go(tree, items[at + 1]); }
            else if (event.key === "ArrowLeft" && expanded === "true") { open(item, false); }
            else if (event.key === "ArrowLeft" && parent) { go(tree, parent); }
            else if ((event.key === "Enter" || event.key === " ") && expanded !== null) { open(item, expanded !== "true"); }
            else { return; }
            event.preventDefault();
        });
        return tree;
    }

    document.querySelectorAll("tr[data-ref]").forEach(function (row) {
        const found = node(Number(row.dataset.ref));
        const long = found && (found.kind === "plain" || found.kind === "text") && String(found.value).length > 300;
        if (!found || (!found.items.length && !long)) { return; }
        const cell = row.querySelector("td");
        const button = element("button", "tr-expand");
        button.type = "button";
        button.setAttribute("aria-expanded", "false");
        button.setAttribute("aria-label", "Open " + row.querySelector("th").textContent);
        cell.insertBefore(button, cell.firstChild);
        let more = null;
        function toggle() {
            if (!more) {
                more = document.createElement("tr");
                more.className = "tr-tree-row";
                const wide = document.createElement("td");
                wide.colSpan = 3;
                if (long) {
                    const whole = element("pre", "tr-pre", found.value);
                    whole.tabIndex = 0;
                    wide.appendChild(whole);
                } else {
                    wide.appendChild(plant(row));
                }
                more.appendChild(wide);
                row.after(more);
                more.hidden = true;
            }
            more.hidden = !more.hidden;
            button.setAttribute("aria-expanded", more.hidden ? "false" : "true");
        }
        button.addEventListener("click", toggle);
        cell.querySelectorAll("code").forEach(function (code) {
            code.classList.add("tr-openable");
            code.addEventListener("click", function () { if (!window.getSelection().toString()) { toggle(); } });
        });
    });
}());
