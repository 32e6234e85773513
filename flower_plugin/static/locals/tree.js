// A value as a tree, operated by mouse or keyboard.
import {element} from "../page/dom.js";
import {count} from "../page/text.js";
import {children, node, shortType, summary} from "./values.js";

const ITEM = '[role="treeitem"]';

// By expandable item: its ref, and the refs of its ancestors.
const closed = new WeakMap();

function line(label, found, repeats) {
    const shown = element("div", "tr-tree-line");
    const redacted = found && found.kind === "redacted";
    shown.append(element("span", "tr-tree-key", label),
        element("code", redacted ? "tr-redacted" : "tr-tree-value", summary(found)));
    if (found && !redacted) { shown.append(element("span", "tr-tree-type", shortType(found.type))); }
    const notes = found ? [found.cut && count(found.cut) + " cut", found.note] : [];
    if (repeats) { notes.push("circular reference"); }
    shown.append(...notes.filter(Boolean).map((text) => element("span", "tr-cut", text)));
    return shown;
}

function branch(heap, label, ref, above) {
    const found = node(heap, ref);
    const opens = Boolean(found && found.items.length);
    const repeats = opens && above.includes(ref);
    const item = element("li");
    item.setAttribute("role", "treeitem");
    item.tabIndex = -1;
    item.append(line(label, found, repeats));
    if (opens && !repeats) {
        item.setAttribute("aria-expanded", "false");
        closed.set(item, {ref, above});
    }
    return item;
}

function inside(heap, item) {
    const {ref, above} = closed.get(item);
    const group = element("ul");
    group.setAttribute("role", "group");
    group.append(...children(heap, node(heap, ref)).map(([label, child]) =>
        branch(heap, label, child, [...above, ref])));
    return group;
}

function open(heap, item, wanted) {
    if (!item.hasAttribute("aria-expanded")) { return; }
    item.setAttribute("aria-expanded", wanted ? "true" : "false");
    let group = item.querySelector(":scope > ul");
    if (wanted && !group) {
        group = inside(heap, item);
        item.append(group);
    }
    if (group) { group.hidden = !wanted; }
}

function go(tree, item) {
    for (const other of tree.querySelectorAll('[tabindex="0"]')) { other.tabIndex = -1; }
    item.tabIndex = 0;
    item.focus();
}

// The action of a key at an item; undefined if it has none.
function actionOf(key, heap, tree, item) {
    const items = [...tree.querySelectorAll(ITEM)].filter((one) => one.offsetParent !== null);
    const at = items.indexOf(item);
    const expanded = item.getAttribute("aria-expanded");
    const parent = item.parentElement.closest(ITEM);
    const to = (target) => target && (() => go(tree, target));
    const toggle = expanded !== null && (() => open(heap, item, expanded !== "true"));
    return {
        ArrowDown: to(items[at + 1]),
        ArrowUp: to(items[at - 1]),
        Home: to(items[0]),
        End: to(items[items.length - 1]),
        ArrowRight: expanded === "false" ? toggle : expanded === "true" && to(items[at + 1]),
        ArrowLeft: expanded === "true" ? toggle : to(parent),
        Enter: toggle,
        " ": toggle
    }[key];
}

export function plant(heap, label, ref) {
    const tree = element("ul", "tr-tree");
    tree.setAttribute("role", "tree");
    tree.setAttribute("aria-label", "Value of " + label);
    const root = branch(heap, label, ref, []);
    root.tabIndex = 0;
    tree.append(root);
    open(heap, root, true);
    tree.addEventListener("click", (event) => {
        const item = event.target.closest(ITEM);
        if (!item || window.getSelection().toString()) { return; }
        open(heap, item, item.getAttribute("aria-expanded") !== "true");
        go(tree, item);
    });
    tree.addEventListener("keydown", (event) => {
        const action = actionOf(event.key, heap, tree, event.target.closest(ITEM));
        if (!action) { return; }
        action();
        event.preventDefault();
    });
    return tree;
}
