// The layout of a flame graph: positions, widths, colors and texts of its boxes.
import {duration, escaped, percent, size} from "../page/text.js";

// Minimum width of a box, pixels.
const LEAST = 2;

// Nodes from rows: [frame, value, value before, width, [children]]. Values are bytes or microseconds.
export function grow(rows, frames) {
    let most = 1;
    function make(row, parent, depth) {
        const [frame, value, before, width, below] = row;
        const node = {frame: frames[frame], value, before, width, parent, depth};
        most = Math.max(most, Math.abs(value - before));
        node.below = below.map((child) => make(child, node, depth + 1));
        return node;
    }
    const root = make(rows, null, 0);
    root.most = most;
    return root;
}

// The path from the root to a node, as sibling indexes; it stays valid when the page is refreshed.
export function path(node) { return node.parent ? [...path(node.parent), node.parent.below.indexOf(node)] : []; }

export function follow(root, places = []) { return places.reduce((node, place) => node.below[place] || node, root); }

// A node and its callers, innermost first.
export function callers(node) { return node ? [node, ...callers(node.parent)] : []; }

export function sibling(node, step) {
    const row = node.parent ? node.parent.below : [node];
    return row[row.indexOf(node) + step];
}

// Boxes of the zoomed node and its callees, below its callers at full width.
export function layout(zoom, pixels) {
    const boxes = callers(zoom).slice(1).reverse().map((node) => ({node, left: 0, width: pixels, above: true}));
    function put(node, left, width) {
        boxes.push({node, left, width, above: false});
        for (const child of node.below) {
            const part = width * child.width / (node.width || 1);
            if (part >= LEAST) { put(child, left, part); }
            left += part;
        }
    }
    put(zoom, 0, pixels);
    return boxes;
}

function tone(text) {
    let sum = 0;
    for (let at = 0; at < text.length; at += 1) { sum = (sum * 31 + text.charCodeAt(at)) % 997; }
    return sum % 3;
}

// The CSS class of a node's color: user code or library, or its growth.
export function className(node, most, compared) {
    const [name, where, , own] = node.frame;
    if (!compared) { return (own ? "tr-own-" : "tr-lib-") + tone(where || name); }
    const change = node.value - node.before;
    const share = Math.abs(change) / most;
    if (share < 0.005) { return "tr-same"; }
    return (change > 0 ? "tr-grew-" : "tr-shrank-") + (share > 0.5 ? 3 : share > 0.15 ? 2 : 1);
}

function amount(value, isTime) { return isTime ? duration(value / 1e6) : size(value); }

function signed(value, isTime) {
    if (!isTime) { return size(value, {signed: true}); }
    return (value > 0 ? "+" : "") + duration(value / 1e6);
}

export function describe(node, root, data) {
    const unit = data.aRun ? " per run" : "";
    const [name, where] = node.frame;
    const text = [name, where, amount(node.value, data.isTime) + unit].filter(Boolean).join(" · ");
    if (data.compared) {
        const more = signed(node.value - node.before, data.isTime);
        return escaped(`${text}, before ${amount(node.before, data.isTime)}${unit} (${more})`);
    }
    return escaped(root.value ? `${text} (${percent(node.value / root.value)})` : text);
}
