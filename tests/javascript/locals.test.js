import assert from "node:assert/strict";
import {test} from "node:test";
import {children, isLong, node, shortType, summary} from "../../flower_plugin/static/locals/values.js";

const HEAP = [
    ["builtins.dict", "dict", null, [1, 2, 3, 4]],
    ["builtins.str", "plain", "email"],
    ["builtins.str", "plain", "ada@example.org"],
    ["builtins.str", "plain", "password"],
    ["builtins.str", "redacted"],
    ["shop.Order", "object", null, [1, 2], ["name"], 2, 0, "id=7"],
    ["builtins.list", "list", null, [1, 2], [], 500, 498],
    ["builtins.NoneType", "plain"],
    ["builtins.bool", "plain", true]
];
const summaryOf = (ref) => summary(node(HEAP, ref));

test("a node has its trailing defaults", () => {
    assert.deepEqual(node(HEAP, 4), {
        type: "builtins.str", kind: "redacted", value: null, items: [], names: [], length: -1, cut: 0, form: "",
        note: ""
    });
    assert.equal(node(HEAP, 99), null);
});

test("a value in one line is written as Python writes it", () => {
    assert.equal(summaryOf(1), '"email"');
    assert.equal(summaryOf(7), "None");
    assert.equal(summaryOf(8), "True");
    assert.equal(summaryOf(4), "redacted");
    assert.equal(summaryOf(99), "not captured");
});

test("a container says how many items it had, those cut off included", () => {
    assert.equal(summaryOf(0), "{2 items}");
    assert.equal(summaryOf(6), "[500 items]");
    assert.equal(summary({kind: "tuple", items: [1], length: -1}), "(1 item)");
    assert.equal(summary({kind: "set", items: [], length: 0}), "{}");
});

test("an object says its type and what it calls itself", () => {
    assert.equal(summaryOf(5), "<shop.Order> id=7");
    assert.equal(shortType("builtins.dict"), "dict");
});

test("children are labelled by key, attribute or index", () => {
    assert.deepEqual(children(HEAP, node(HEAP, 0)), [['"email"', 2], ['"password"', 4]]);
    assert.deepEqual(children(HEAP, node(HEAP, 5)), [["name", 1], ["?", 2]]);
    assert.deepEqual(children(HEAP, node(HEAP, 6)), [["0", 1], ["1", 2]]);
});

test("text beyond what a row shows is long", () => {
    assert.equal(isLong({kind: "text", value: "x".repeat(301)}), true);
    assert.equal(isLong({kind: "text", value: "x".repeat(300)}), false);
    assert.equal(isLong({kind: "list", value: null}), false);
});
