// Flame graphs of kept memory: the task on top, what it called below. Click or Enter zooms, arrow keys go around.
(function () {
    "use strict";

    const trace = window.celeryTrace;
    const ROW = 21;
    const LEAST = 2;  // pixels; what is narrower is not drawn
    const zoomed = {};  // by data: the way to the frame that is zoomed, so that it stays when the page is refreshed

    // A node is [frame, bytes, bytes before, width, [children]].
    function grow(rows, frames) {
        let most = 1;
        function make(row, parent, depth) {
            const node = {
                frame: frames[row[0]], bytes: row[1], before: row[2], width: row[3],
                parent: parent, depth: depth, place: 0, below: []
            };
            most = Math.max(most, Math.abs(node.bytes - node.before));
            node.below = row[4].map(function (child) { return make(child, node, depth + 1); });
            return node;
        }
        const root = make(rows, null, 0);
        root.most = most;
        return root;
    }

    function way(node) { return node.parent ? way(node.parent).concat(node.parent.below.indexOf(node)) : []; }

    function follow(root, places) {
        let node = root;
        (places || []).forEach(function (place) { node = node.below[place] || node; });
        return node;
    }

    function tone(text) {
        let sum = 0;
        for (let at = 0; at < text.length; at += 1) { sum = (sum * 31 + text.charCodeAt(at)) % 997; }
        return sum % 3;
    }

    function look(node, root, data) {
        if (!data.compared) { return (node.frame[3] ? "tr-own-" : "tr-lib-") + tone(node.frame[1] || node.frame[0]); }
        const change = node.bytes - node.before;
        const share = Math.abs(change) / root.most;
        if (share < 0.005) { return "tr-same"; }
        return (change > 0 ? "tr-grew-" : "tr-shrank-") + (share > 0.5 ? 3 : share > 0.15 ? 2 : 1);
    }

    function words(node, root, data) {
        const unit = data.aRun ? " a run" : "";
        let text = node.frame[0] + (node.frame[1] ? " · " + node.frame[1] : "") + " · " + trace.size(node.bytes) + unit;
        if (data.compared) {
            const change = node.bytes - node.before;
            text += ", before " + trace.size(node.before) + unit + " (" + (change < 0 ? "−" : "+") + trace.size(Math.abs(change)) + ")";
        } else if (root.bytes) {
            text += " (" + (100 * node.bytes / root.bytes).toFixed(1) + " %)";
        }
        return trace.visible(text);
    }

    function draw(place) {
        const data = trace.data(place.dataset.source);
        if (!data) { return; }
        const root = grow(data.root, data.frames);
        const told = place.closest(".tr-card").querySelector(".tr-flame-words");
        let zoom = follow(root, zoomed[place.dataset.source]);
        let current = zoom;

        function tell(node) {
            told.textContent = words(node, root, data);
            if (node.frame[2]) {
                const code = document.createElement("code");
                code.textContent = trace.visible(node.frame[2]);
                told.appendChild(document.createElement("br"));
                told.appendChild(code);
            }
        }

        function show(focus) {
            const pixels = place.clientWidth;
            const inside = [];
            let deepest = 0;
            for (let above = zoom; above; above = above.parent) { inside.push(above); }
            place.textContent = "";

            function put(node, left, width) {
                const box = document.createElement("div");
                box.className = "tr-flame-frame " + look(node, root, data) + (node !== zoom && inside.includes(node) ? " tr-flame-above" : "");
                box.style.left = left + "px";
                box.style.top = node.depth * ROW + "px";
                box.style.width = Math.max(1, width - 1) + "px";
                box.setAttribute("role", "treeitem");
                box.setAttribute("aria-level", String(node.depth + 1));
                box.setAttribute("aria-label", words(node, root, data));
                if (node.below.length) { box.setAttribute("aria-expanded", "true"); }
                box.tabIndex = node === current ? 0 : -1;
                box.title = words(node, root, data) + (node.frame[2] ? "\n" + trace.visible(node.frame[2]) : "");
                if (width > 24) { box.textContent = trace.visible(node.frame[0]); }
                box.addEventListener("click", function () { current = node; zoomTo(node); });
                box.addEventListener("mouseenter", function () { tell(node); });
                box.addEventListener("focus", function () { tell(node); });
                node.box = box;
                place.appendChild(box);
                deepest = Math.max(deepest, node.depth);
            }

            function below(node, left, width) {
                put(node, left, width);
                const total = node.width || 1;
                node.below.forEach(function (child) {
                    const part = width * child.width / total;
                    child.box = null;
                    if (part >= LEAST) { below(child, left, part); }
                    left += part;
                });
            }

            inside.slice(1).reverse().forEach(function (node) { put(node, 0, pixels); });
            below(zoom, 0, pixels);
            place.style.height = (deepest + 1) * ROW + "px";
            if (focus && current.box) { current.box.focus({preventScroll: true}); }
        }

        function zoomTo(node) {
            zoom = node;
            zoomed[place.dataset.source] = way(node);
            show(true);
        }

        function go(node) {
            if (!node) { return; }
            if (!node.box || !node.box.isConnected) { current = node; zoomTo(node.parent || node); return; }
            current.box.tabIndex = -1;
            current = node;
            node.box.tabIndex = 0;
            node.box.focus();
        }

        function beside(step) {
            const row = current.parent ? current.parent.below : [current];
            return row[row.indexOf(current) + step];
        }

        place.onkeydown = function (event) {
            const keys = {
                ArrowUp: function () { go(current.parent); },
                ArrowDown: function () { go(current.below[0]); },
                ArrowLeft: function () { go(beside(-1)); },
                ArrowRight: function () { go(beside(1)); },
                Home: function () { go(root); },
                Enter: function () { zoomTo(current); },
                " ": function () { zoomTo(current); },
                Escape: function () { zoomTo(zoom.parent || root); }
            };
            if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) { return; }
            event.preventDefault();
            keys[event.key]();
        };
        show(false);
    }

    function drawAll(root, kept) {
        root.querySelectorAll("[data-flame]").forEach(function (place) {
            if (!(kept || []).some(function (card) { return card.contains(place); })) { draw(place); }
        });
    }

    document.addEventListener("trace:fresh", function (event) { drawAll(event.target, event.detail.kept); });
    let waiting = 0;
    let width = window.innerWidth;
    window.addEventListener("resize", function () {
        if (window.innerWidth === width) { return; }
        width = window.innerWidth;
        window.clearTimeout(waiting);
        waiting = window.setTimeout(function () { drawAll(document.body); }, 150);
    });
    drawAll(document.body);
}());
