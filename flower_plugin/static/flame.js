// Flame graphs of memory or time, the task on top. Click or Enter zooms, arrow keys select frames.
import {className, describe, follow, grow, layout, path, sibling} from "./flames/layout.js";
import {element, onNewWidth} from "./page/dom.js";
import {escaped} from "./page/text.js";

const ROW = 21;
const MIN_TEXT_WIDTH = 24;

// By data source: the path of the zoomed node. By element: the JSON that it was drawn from.
const zoomed = {};
const drawn = new WeakMap();

class FlameGraph {
    constructor(place, data) {
        this.place = place;
        this.data = data;
        this.root = grow(data.root, data.frames);
        this.details = place.closest(".tr-card").querySelector(".tr-flame-text");
        this.zoom = this.current = follow(this.root, zoomed[place.dataset.source]);
        place.onkeydown = (event) => this.pressed(event);
        this.show();
    }

    show() {
        this.shown = new Map();
        const boxes = layout(this.zoom, this.place.clientWidth);
        this.place.replaceChildren(...boxes.map((box) => this.box(box)));
        const deepest = Math.max(...boxes.map((box) => box.node.depth));
        this.place.style.height = (deepest + 1) * ROW + "px";
    }

    box({node, left, width, above}) {
        const text = describe(node, this.root, this.data);
        const name = className(node, this.root.most, this.data.compared);
        const box = element("div", `tr-flame-frame ${name}${above ? " tr-flame-above" : ""}`);
        box.style.left = left + "px";
        box.style.top = node.depth * ROW + "px";
        box.style.width = Math.max(1, width - 1) + "px";
        box.setAttribute("role", "treeitem");
        box.setAttribute("aria-level", String(node.depth + 1));
        box.setAttribute("aria-label", text);
        if (node.below.length) { box.setAttribute("aria-expanded", "true"); }
        box.tabIndex = node === this.current ? 0 : -1;
        box.title = text + (node.frame[2] ? "\n" + escaped(node.frame[2]) : "");
        if (width > MIN_TEXT_WIDTH) { box.textContent = escaped(node.frame[0]); }
        box.addEventListener("click", () => this.zoomTo(node, node));
        box.addEventListener("mouseenter", () => this.showDetails(node, text));
        box.addEventListener("focus", () => this.showDetails(node, text));
        this.shown.set(node, box);
        return box;
    }

    showDetails(node, text) {
        this.details.textContent = text;
        if (node.frame[2]) { this.details.append(element("br"), element("code", "", node.frame[2])); }
    }

    zoomTo(node, current = this.current) {
        this.zoom = node;
        this.current = current;
        zoomed[this.place.dataset.source] = path(node);
        this.show();
        this.shown.get(current)?.focus({preventScroll: true});
    }

    go(node) {
        if (!node) { return; }
        const box = this.shown.get(node);
        if (!box) { this.zoomTo(node.parent || node, node); return; }
        this.shown.get(this.current)?.setAttribute("tabindex", "-1");
        this.current = node;
        box.tabIndex = 0;
        box.focus();
    }

    pressed(event) {
        const zoom = () => this.zoomTo(this.current);
        const keys = {
            ArrowUp: () => this.go(this.current.parent),
            ArrowDown: () => this.go(this.current.below[0]),
            ArrowLeft: () => this.go(sibling(this.current, -1)),
            ArrowRight: () => this.go(sibling(this.current, 1)),
            Home: () => this.go(this.root),
            Enter: zoom, " ": zoom,
            Escape: () => this.zoomTo(this.zoom.parent || this.root)
        };
        if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) { return; }
        event.preventDefault();
        keys[event.key]();
    }
}

function draw(place) {
    const text = document.getElementById(place.dataset.source)?.textContent;
    if (!text) { return; }
    drawn.set(place, text);
    new FlameGraph(place, JSON.parse(text));
}

function drawAll() { document.querySelectorAll("[data-flame]").forEach(draw); }

document.addEventListener("trace:fresh", (event) => {
    for (const place of event.target.querySelectorAll("[data-flame]")) {
        if (drawn.get(place) !== document.getElementById(place.dataset.source)?.textContent) { draw(place); }
    }
});
onNewWidth(drawAll);
drawAll();
