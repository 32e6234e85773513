import assert from "node:assert/strict";
import {beforeEach, test} from "node:test";
import {elementOf, openPage} from "./browser.js";

openPage('<div id="tr-toasts"></div>');
const {freeName, invalidField} = await import("../../flower_plugin/static/alerting/rules.js");
const {outcome} = await import("../../flower_plugin/static/page/buttons.js");
const {morph} = await import("../../flower_plugin/static/page/morph.js");
const {refusal} = await import("../../flower_plugin/static/page/requests.js");
const {Transcript} = await import("../../flower_plugin/static/shell/transcript.js");

let region;

function show(markup) {
    region = elementOf(`<div id="live">${markup}</div>`);
    document.body.replaceChildren(region);
}

function becomes(markup, catchUp = () => {}) {
    return morph(region, elementOf(`<div id="live">${markup}</div>`), catchUp);
}

beforeEach(() => show(""));

test("what did not change stays the same element", () => {
    show("<table><tbody><tr><td>1</td></tr></tbody></table>");
    const row = region.querySelector("tr");
    assert.equal(becomes("<table><tbody><tr><td>2</td></tr><tr><td>3</td></tr></tbody></table>"), true);
    assert.equal(region.querySelector("tr"), row);
    assert.deepEqual([...region.querySelectorAll("td")].map((cell) => cell.textContent), ["2", "3"]);
});

test("what somebody opened or closed stays so", () => {
    show('<details id="a"><summary>a</summary></details><details id="b" open><summary>b</summary></details>');
    const [a, b] = region.querySelectorAll("details");
    [a.open, b.open] = [true, false];
    becomes('<details id="a"><summary>A</summary></details><details id="b" open><summary>B</summary></details>');
    assert.deepEqual([a.open, b.open, a.textContent], [true, false, "A"]);
});

test("an open row stays open when another comes above it", () => {
    const row = (id) => `<tr id="${id}"><td><details><summary>${id}</summary></details></td></tr>`;
    show(`<table><tbody>${row("one")}${row("two")}</tbody></table>`);
    region.querySelector("#one details").open = true;
    becomes(`<table><tbody>${row("new")}${row("one")}${row("two")}</tbody></table>`);
    assert.deepEqual([...region.querySelectorAll("tr")].map((one) => [one.id, one.querySelector("details").open]),
        [["new", false], ["one", true], ["two", false]]);
});

test("the focus stays where it is", () => {
    show("<p>1</p><button>Go</button>");
    region.querySelector("button").focus();
    becomes("<p>2</p><p>3</p><button>Go</button>");
    assert.equal(document.activeElement, region.querySelector("button"));
});

test("the figure that somebody chose to plot stays chosen", () => {
    const buttons = (rss) => `<button data-series="rss" aria-pressed="${rss}"></button>`;
    show(buttons(true));
    region.querySelector("button").setAttribute("aria-pressed", "false");
    becomes(buttons(true));
    assert.equal(region.querySelector("button").getAttribute("aria-pressed"), "false");
});

const card = (words, values) => `<section class="tr-card"><h2 id="rss">${words}</h2>
    <div data-plot="memory" data-source="values"></div><script type="application/json" id="values">${values}</script>
    <button>Resident</button></section>`;

function draw() {
    const place = region.querySelector("[data-plot]");
    place.append(elementOf("<canvas></canvas>"));
    place.setAttribute("role", "img");
    place.after(elementOf('<div class="tr-lanes" data-drawn="values">lanes</div>'));
    return place;
}

test("a drawing is left to the script that drew it, beside data that are new", () => {
    show(card("Memory", "[1]"));
    const place = draw();
    assert.equal(becomes(card("Memory now", "[2]")), true);
    assert.equal(region.querySelector("[data-plot]"), place);
    assert.ok(place.querySelector("canvas"));
    assert.equal(place.getAttribute("role"), "img");
    assert.equal(region.querySelector(".tr-lanes").textContent, "lanes");
    assert.equal(region.querySelector("script").textContent, "[2]");
    assert.equal(region.querySelector("h2").textContent, "Memory now");
});

async function leave() {
    region.querySelector("button").blur();
    await new Promise((resolve) => { setTimeout(resolve, 20); });
}

test("a card whose drawing is in use waits until it is left", async () => {
    show(`<p>old</p>${card("Memory", "[1]")}`);
    draw();
    region.querySelector("button").focus();
    let caughtUp = 0;
    const catchUp = () => { caughtUp += 1; };
    assert.equal(becomes(`<p>new</p>${card("Memory now", "[2]")}`, catchUp), false);
    assert.equal(region.querySelector("p").textContent, "new");
    assert.equal(region.querySelector("h2").textContent, "Memory");
    assert.equal(region.querySelector("script").textContent, "[1]");
    assert.equal(becomes(`<p>newer</p>${card("Memory now", "[3]")}`, catchUp), false);
    await leave();
    assert.equal(caughtUp, 1);
    assert.equal(becomes(`<p>newer</p>${card("Memory now", "[3]")}`, catchUp), true);
    assert.equal(region.querySelector("script").textContent, "[3]");
    region.querySelector("button").focus();
    await leave();
    assert.equal(caughtUp, 1, "nothing waited");
});

test("a card in use stays even where the server has none any more", () => {
    show(card("Memory", "[1]"));
    region.querySelector("button").focus();
    assert.equal(becomes("<p>No worker</p>"), false);
    assert.ok(region.querySelector("[data-plot]"));
    region.querySelector("button").blur();
    assert.equal(becomes("<p>No worker</p>"), true);
    assert.equal(region.querySelector("[data-plot]"), null);
});

test("an order says what came of it", () => {
    assert.deepEqual(outcome({}, "Done."), {text: "Done.", bad: false});
    assert.deepEqual(outcome({task_id: "t1"}, "Sent."), {text: "Sent. Task id: t1.", bad: false});
    assert.equal(outcome({workers: []}, "Done.").bad, true);
    assert.deepEqual(outcome({workers: [{worker: "w1", ok: true}, {worker: "w2", ok: false, why: "old"}]}, "Done."),
        {text: "w2: old", bad: true});
    assert.deepEqual(outcome({deliveries: [{ok: false, error: "no route"}]}, "Sent."),
        {text: "Not delivered: no route", bad: true});
});

test("a refusal says what, why and next, or at least its number", () => {
    assert.equal(refusal({error: {what: "No.", why: "", next: "Try later."}}, 409), "No. Try later.");
    assert.match(refusal({}, 502), /502/);
});

test("a new rule has a name that is free", () => {
    assert.equal(freeName("lost", ["leak"]), "lost");
    assert.equal(freeName("lost", ["lost", "lost-2"]), "lost-3");
});

test("a complaint names the rule and the field that it is about", () => {
    assert.deepEqual(invalidField("trace_alert_rules[2]: 'for' is no duration"), {rule: 1, key: "for"});
    assert.deepEqual(invalidField("trace_alert_rules[1]: must be a size"), {rule: 0, key: "must"});
    assert.equal(invalidField("The store is down."), null);
});

test("a transcript joins output, shows no markup and prompts each line of input", () => {
    const log = elementOf("<div></div>");
    const transcript = new Transcript(log);
    transcript.add("input", "if x:\n    y\n");
    transcript.add("stdout", "<b>1");
    transcript.add("stdout", "2\x1b[0m\u202e");
    transcript.add("remark", "look", "bob");
    assert.deepEqual([...log.querySelectorAll("pre")].map((pre) => pre.textContent),
        [">>> if x:\n...     y", "<b>12\\u202e", "look"]);
    assert.equal(log.querySelector("b"), null);
    assert.equal(log.querySelector(".tr-log-who").textContent, "bob");
    assert.equal(transcript.lastInput(), log.firstElementChild);
});
