import assert from "node:assert/strict";
import {test} from "node:test";
import {placed} from "../../flower_plugin/static/plotting/bars.js";
import {
    byReason, byWeight, growthLines, highest, lonelyTimes, memoryLines, near, queueLines, takeRoom
} from "../../flower_plugin/static/plotting/lines.js";
import {
    around, BYTE_STEPS, bytesTick, fromZero, limitInSight, times
} from "../../flower_plugin/static/plotting/scales.js";

const MIB = 1024 * 1024;

test("ticks of bytes are whole steps of 1024 without empty decimals", () => {
    assert.equal(bytesTick(0), "0");
    assert.equal(bytesTick(50 * MIB), "50 MiB");
    assert.equal(bytesTick(1.5 * MIB), "1.5 MiB");
    assert.ok(BYTE_STEPS.includes(200 * MIB));
    assert.deepEqual(BYTE_STEPS, [...BYTE_STEPS].sort((a, b) => a - b));
});

test("an axis of time has so many seconds at least", () => {
    const plot = {data: [[100, 110]]};
    assert.deepEqual(times(60)(plot, 100, 110), [75, 135]);
    assert.deepEqual(times(60)(plot, 100, 300), [100, 300]);
    assert.deepEqual(times(60, () => 5)(plot, 100, 300), [95, 305]);
});

test("a single point stands in the middle of its axis", () => {
    assert.deepEqual(times(60)({data: [[500]]}, 0, 1e9), [470, 530]);
});

test("an axis of values holds zero and is never empty", () => {
    assert.deepEqual(fromZero(5, 100), [0, 108]);
    assert.deepEqual(fromZero(-5, 0), [-5, 1]);
    assert.deepEqual(around(100, 200), [0, 208]);
    assert.deepEqual(around(-100, 100), [-116, 116]);
    assert.deepEqual(around(0, 0), [0, 0.08]);
});

test("a limit far above everything is not in sight", () => {
    assert.equal(limitInSight(150, 100), 150);
    assert.equal(limitInSight(161, 100), null);
    assert.equal(limitInSight(0, 100), null);
});

test("growth has a line for each process, or one of samples", () => {
    assert.deepEqual(growthLines({lines: [{label: "pid 1", points: [[1, 10], [2, 20]]}], samples: []}),
        [{label: "pid 1", x: [1, 2], y: [10, 20]}]);
    assert.deepEqual(growthLines({lines: [], samples: [[1, 5]]}), [{label: "retained", x: [1], y: [5]}]);
});

const PROCESS = {
    label: "pid 1", at: [1, 2, 3, 4], rss: [10, null, 30, 40], uss: [1, null, null, 4], name: ["a", "", "b", "b"]
};

test("a line of memory breaks where nothing was measured, not where one figure is missing", () => {
    const [line] = memoryLines([PROCESS], "uss");
    assert.deepEqual([line.x, line.y], [[1, 2, 4], [1, null, 4]]);
    assert.equal(line.names.get(3), "b");
    assert.equal(highest([line]), 4);
});

test("a process that never tells a figure has no line", () => {
    assert.deepEqual(memoryLines([{...PROCESS, uss: [null, null, null, null]}], "uss"), []);
});

test("a point with no line to either side is lonely", () => {
    assert.deepEqual([...lonelyTimes({x: [1, 2, 3, 4, 5], y: [1, null, 3, null, 5]})], [1, 3, 5]);
    assert.deepEqual([...lonelyTimes({x: [1, 2, 3], y: [1, 2, 3]})], []);
});

test("single runs have a column for each reason", () => {
    const data = {why: ["slow", "failed", "slow"], duration_s: [3, 1, 2]};
    assert.deepEqual(byReason(data, "duration_s"),
        {reasons: ["failed", "slow"], columns: [[null, 1, null], [3, null, 2]]});
});

test("marks are named where the cursor is near", () => {
    const marks = [{at: 100, text: "deploy"}, {at: 200, text: "restart"}];
    assert.deepEqual(near(marks, 101, 600), ["deploy"]);
    assert.deepEqual(near(undefined, 101, 600), []);
});

test("words of marks go to the weightiest first and to no place twice", () => {
    const order = byWeight([{kind: "start"}, {kind: "deploy"}, {kind: "killed"}]).map((mark) => mark.kind);
    assert.deepEqual(order, ["deploy", "killed", "start"]);
    const taken = [];
    assert.equal(takeRoom(taken, 0, 50, 10), true);
    assert.equal(takeRoom(taken, 55, 90, 10), false);
    assert.equal(takeRoom(taken, 61, 90, 10), true);
});

test("a bar is as long as its run, and can be seen however short that is", () => {
    assert.deepEqual(placed(25, 75, 0, 100), {left: 25, width: 50});
    assert.deepEqual(placed(50, 50, 0, 100), {left: 50, width: 0.15});
    assert.deepEqual(placed(-50, 150, 0, 100), {left: 0, width: 100});
    assert.equal(placed(150, 160, 0, 100), null);
});

test("queues have a line of the chosen quantity, and waits have times of their own", () => {
    const orders = {label: "orders", at: [10, 20], depth: [3, null], wait_at: [0, 300], wait_s: [0.5, 2]};
    const mails = {label: "mails", at: [10], depth: [7], wait_at: [], wait_s: []};
    assert.deepEqual(queueLines([orders, mails], "depth"),
        [{label: "orders", x: [10, 20], y: [3, null]}, {label: "mails", x: [10], y: [7]}]);
    assert.deepEqual(queueLines([orders, mails], "wait_s"), [{label: "orders", x: [0, 300], y: [0.5, 2]}]);
});
