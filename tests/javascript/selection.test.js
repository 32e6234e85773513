import assert from "node:assert/strict";
import {test} from "node:test";
import {elementOf, openPage} from "./browser.js";

const page = openPage('<div id="tr-toasts"></div>');
const {bodyOf} = await import("../../flower_plugin/static/page/forms.js");
const {morph} = await import("../../flower_plugin/static/page/morph.js");
const {bodyOfButton, startSelection} = await import("../../flower_plugin/static/page/selection.js");

const ROWS = '<input type="checkbox" id="a" data-pick="a"><input type="checkbox" id="b" data-pick="b">';

function table(rows = ROWS) {
    const root = elementOf(`<section id="rows" data-picking><input type="checkbox" data-pick-all>${rows}</section>`);
    const button = elementOf(
        '<button disabled data-picked="rows" data-body=\'{"x": 1}\'><b data-picked-count></b></button>');
    document.body.replaceChildren(root, button);
    startSelection();
    return {root, button, all: root.querySelector("[data-pick-all]")};
}

function click(box) {
    box.checked = !box.checked;
    box.dispatchEvent(new page.Event("change", {bubbles: true}));
}

test("a button acts on the selected rows and on no others", () => {
    const {root, button, all} = table();
    assert.deepEqual([button.disabled, all.checked], [true, false]);
    click(root.querySelector("#b"));
    assert.equal(bodyOfButton(button), '{"x":1,"ids":["b"]}');
    assert.deepEqual([button.disabled, button.textContent, all.checked, all.indeterminate], [false, "1", false, true]);
    click(root.querySelector("#b"));
    assert.deepEqual([button.disabled, button.textContent], [true, ""]);
});

test("the box in the heading selects all rows and none", () => {
    const {button, all} = table();
    click(all);
    assert.equal(bodyOfButton(button), '{"x":1,"ids":["a","b"]}');
    assert.equal(all.indeterminate, false);
    click(all);
    assert.equal(button.disabled, true);
});

test("a selection stays when the table is updated", () => {
    const {root} = table();
    click(root.querySelector("#b"));
    const fresh = elementOf(`<section id="rows" data-picking><input type="checkbox" data-pick-all>
        <input type="checkbox" id="c" data-pick="c">${ROWS}</section>`);
    morph(root, fresh, () => {});
    const boxes = [...root.querySelectorAll("[data-pick]")];
    assert.deepEqual(boxes.map((box) => [box.id, box.checked]), [["c", false], ["a", false], ["b", true]]);
});

test("a button without a table sends its own body", () => {
    assert.equal(bodyOfButton(elementOf('<button data-body="{}"></button>')), "{}");
    assert.equal(bodyOfButton(elementOf("<button></button>")), undefined);
});

test("a form's fields are texts, and numbers where it says so", () => {
    const form = elementOf(`<form><input name="to" value="7"><select name="seconds" data-number><option value="60">
        </option></select><button type="submit">Go</button></form>`);
    assert.deepEqual(bodyOf(form.elements), {to: "7", seconds: 60});
});
