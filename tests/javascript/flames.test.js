import assert from "node:assert/strict";
import {test} from "node:test";
import {
    callers, className, describe, follow, grow, layout, path, sibling
} from "../../flower_plugin/static/flames/layout.js";

const FRAMES = [
    ["shop.tasks.remember", "", "", true], ["remember", "tasks.py:57", "ORDERS.append(order)", true],
    ["dumps", "json/__init__.py:12", "", false]
];
// [frame, value, value before, width, [children]]
const ROWS = [0, 1000, 500, 1000, [[1, 900, 100, 900, []], [2, 100, 400, 100, []]]];

function graph() { return grow(ROWS, FRAMES); }

test("rows become nodes that know their caller, and the greatest change", () => {
    const root = graph();
    assert.equal(root.most, 800);
    assert.deepEqual(root.below.map((node) => [node.frame[0], node.depth, node.parent === root]),
        [["remember", 1, true], ["dumps", 1, true]]);
});

test("boxes stand below their caller, as wide as their share", () => {
    const boxes = layout(graph(), 500).map(({node, left, width}) => [node.frame[0], node.depth, left, width]);
    assert.deepEqual(boxes, [["shop.tasks.remember", 0, 0, 500], ["remember", 1, 0, 450], ["dumps", 1, 450, 50]]);
});

test("what is narrower than two pixels is left out and keeps its place", () => {
    const root = grow([0, 10, 0, 1000, [[1, 1, 0, 1, []], [2, 9, 0, 999, []]]], FRAMES);
    assert.deepEqual(layout(root, 100).map(({node, left}) => [node.frame[0], left]),
        [["shop.tasks.remember", 0], ["dumps", 0.1]]);
});

test("what is zoomed takes the whole width, and so do its callers above", () => {
    const root = graph();
    const boxes = layout(root.below[1], 500).map(({node, width, above}) => [node.frame[0], width, above]);
    assert.deepEqual(boxes, [["shop.tasks.remember", 500, true], ["dumps", 500, false]]);
});

test("the way to a node leads there in a graph of newer data too", () => {
    const node = graph().below[1];
    assert.deepEqual(path(node), [1]);
    assert.equal(follow(graph(), path(node)).frame[0], "dumps");
    assert.equal(follow(graph(), [7]).frame[0], "shop.tasks.remember");
});

test("neighbours and callers are found for the arrow keys", () => {
    const root = graph();
    assert.equal(sibling(root.below[0], 1), root.below[1]);
    assert.equal(sibling(root, 1), undefined);
    assert.deepEqual(callers(root.below[0]), [root.below[0], root]);
});

test("colours tell own code from libraries, or growth from its opposite", () => {
    const root = graph();
    assert.match(className(root.below[0], root.most, false), /^tr-own-[012]$/);
    assert.match(className(root.below[1], root.most, false), /^tr-lib-[012]$/);
    assert.equal(className(root.below[0], root.most, true), "tr-grew-3");
    assert.equal(className(root.below[1], root.most, true), "tr-shrank-2");
    assert.equal(className({...root, value: 500, before: 500}, root.most, true), "tr-same");
});

test("a node says what it keeps, as a share or as a difference", () => {
    const root = graph();
    assert.equal(describe(root.below[0], root, {aRun: true}), "remember · tasks.py:57 · 900 B per run (90 %)");
    assert.equal(describe(root.below[1], root, {compared: true}),
        "dumps · json/__init__.py:12 · 100 B, before 400 B (-300 B)");
});

test("a time is microseconds, as a duration or its change", () => {
    const root = graph();
    assert.equal(describe(root.below[0], root, {isTime: true, aRun: true}),
        "remember · tasks.py:57 · 900 µs per run (90 %)");
    assert.equal(describe(root.below[0], root, {isTime: true, compared: true}),
        "remember · tasks.py:57 · 900 µs, before 100 µs (+800 µs)");
    assert.equal(describe(root.below[1], root, {isTime: true, compared: true}),
        "dumps · json/__init__.py:12 · 100 µs, before 400 µs (-300 µs)");
});
