import assert from "node:assert/strict";
import {test} from "node:test";
import {isDefault, withArgument} from "../../flower_plugin/static/page/filters.js";

const PAGE = "http://monitor.example/pre/fix/trace/leaks?verdict=leaking&cursor=abc";

test("a link changes one argument and keeps the filter", () => {
    assert.equal(withArgument(PAGE, "sort", "name"), "/pre/fix/trace/leaks?verdict=leaking&sort=name");
    assert.equal(withArgument(PAGE, "verdict", ""), "/pre/fix/trace/leaks");
});

test("the next page of a list keeps its filter, and another filter begins at the first page", () => {
    assert.equal(withArgument(PAGE, "cursor", "x y"), "/pre/fix/trace/leaks?verdict=leaking&cursor=x+y");
    assert.equal(withArgument(PAGE, "sort", ""), "/pre/fix/trace/leaks?verdict=leaking");
});

function field(name, value, submits = false) { return {name, value, hasAttribute: () => submits}; }

test("empty fields stay out of the address", () => {
    assert.equal(isDefault(field("search", "")), true);
    assert.equal(isDefault(field("search", "x")), false);
});

test("all time is left out where it is what a list shows anyway", () => {
    assert.equal(isDefault(field("range", "all")), true);
    assert.equal(isDefault(field("range", "all", true)), false);
    assert.equal(isDefault(field("range", "day")), false);
});
