// Captured values from the heap table in the page: their summaries and children.

// A node is an array without its trailing defaults; see celery_trace.model.Node.
const DEFAULTS = [undefined, undefined, null, [], [], -1, 0, "", ""];

const BRACKETS = {
    list: ["[", "]"], tuple: ["(", ")"], set: ["{", "}"], frozenset: ["frozenset({", "})"],
    deque: ["deque([", "])"], dict: ["{", "}"]
};

export function node(heap, ref) {
    if (!heap[ref]) { return null; }
    const [type, kind, value, items, names, length, cut, form, note] =
        DEFAULTS.map((otherwise, at) => (heap[ref][at] === undefined ? otherwise : heap[ref][at]));
    return {type, kind, value, items, names, length, cut, form, note};
}

export function shortType(type) { return type.replace(/^builtins\./, ""); }

// As a Python literal.
function plain(value) {
    if (value === null) { return "None"; }
    if (value === true) { return "True"; }
    if (value === false) { return "False"; }
    return typeof value === "string" ? JSON.stringify(value) : String(value);
}

function itemsIn(found) {
    const size = found.length >= 0 ? found.length : found.items.length / (found.kind === "dict" ? 2 : 1);
    return size ? size + (size === 1 ? " item" : " items") : "";
}

const SUMMARIES = {
    plain: (found) => plain(found.value),
    text: (found) => String(found.value),
    redacted: () => "redacted",
    absent: () => "omitted"
};

// A value in one line.
export function summary(found) {
    if (!found) { return "not captured"; }
    if (SUMMARIES[found.kind]) { return SUMMARIES[found.kind](found); }
    if (BRACKETS[found.kind]) {
        const [open, close] = BRACKETS[found.kind];
        return open + itemsIn(found) + close;
    }
    return `<${shortType(found.type)}>` + (found.form ? " " + found.form : "");
}

// The children of a value, as [label, ref].
export function children(heap, found) {
    if (found.kind === "dict") {
        const pairs = [];
        for (let at = 0; at + 1 < found.items.length; at += 2) {
            pairs.push([summary(node(heap, found.items[at])), found.items[at + 1]]);
        }
        return pairs;
    }
    const label = found.kind === "object" ? (at) => found.names[at] || "?" : String;
    return found.items.map((ref, at) => [label(at), ref]);
}

// Whether a value is longer than its table row shows.
export function isLong(found) {
    return (found.kind === "plain" || found.kind === "text") && String(found.value).length > 300;
}
