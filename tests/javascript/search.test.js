import assert from "node:assert/strict";
import {test} from "node:test";
import {openPage} from "./browser.js";

openPage('<div id="tr-toasts"></div>');
const {moved, Options} = await import("../../flower_plugin/static/page/options.js");
const {fits, matching} = await import("../../flower_plugin/static/page/palette.js");
const {completed} = await import("../../flower_plugin/static/page/search.js");

test("a completion replaces the word at the cursor and keeps the rest", () => {
    const suggestion = {start: 2, text: "task:shop.pay "};
    assert.deepEqual(completed("x ta", 4, suggestion), {text: "x task:shop.pay ", caret: 16});
    assert.deepEqual(completed("x ta since:1h", 4, suggestion), {text: "x task:shop.pay since:1h", caret: 16});
    assert.deepEqual(completed("", 0, {start: 0, text: "task:"}), {text: "task:", caret: 5});
});

test("keys move through the options, around both ends", () => {
    assert.deepEqual([moved("ArrowDown", -1, 3), moved("ArrowDown", 2, 3)], [0, 0]);
    assert.deepEqual([moved("ArrowUp", -1, 3), moved("ArrowUp", 0, 3)], [2, 2]);
    assert.deepEqual([moved("Home", 2, 3), moved("End", 0, 3), moved("ArrowDown", 0, 0)], [0, 2, -1]);
});

function options() {
    const field = document.createElement("input");
    const place = document.createElement("div");
    place.append(field);
    document.body.replaceChildren(place);
    const chosen = [];
    return {field, chosen, options: new Options(field, place, (option) => chosen.push(option.text))};
}

test("an option is chosen by keys, and the field says which", () => {
    const {field, chosen, options: list} = options();
    assert.equal(list.press("ArrowDown"), false);
    list.show([{text: "a", meaning: "x"}, {text: "<b>", meaning: ""}]);
    assert.equal(field.getAttribute("aria-expanded"), "true");
    assert.equal(list.press("Enter"), false);
    list.press("ArrowDown");
    list.press("ArrowDown");
    const item = document.getElementById(field.getAttribute("aria-activedescendant"));
    assert.deepEqual([item.textContent, item.getAttribute("aria-selected"), item.children.length], ["<b>", "true", 2]);
    assert.equal(list.press("Enter"), true);
    assert.deepEqual(chosen, ["<b>"]);
    assert.equal(list.press("Escape"), true);
    assert.deepEqual([field.getAttribute("aria-expanded"), list.list.hidden], ["false", true]);
    assert.equal(field.hasAttribute("aria-activedescendant"), false);
});

test("commands fit by their letters in order, and any text can be searched for", () => {
    assert.deepEqual([fits("Overview", "ovw"), fits("Overview", "wv"), fits("Queues", "")], [true, false, true]);
    const commands = [{text: "Overview", meaning: "page"}, {text: "Queues", meaning: "page"}];
    assert.deepEqual(matching(commands, "que").map((one) => one.text),
        ["Queues", "Search failures: que", "Search groups: que"]);
    assert.equal(matching(commands, "a&b=c").at(-1).address, "/trace/failures?q=a%26b%3Dc");
    assert.equal(matching(commands, " ").length, 2);
    assert.equal(matching(Array.from({length: 50}, () => ({text: "a"})), "a").length, 12);
});
