import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {describe, test} from "node:test";
import {
    ago, clip, count, duration, escaped, escapedLines, left, percent, size
} from "../../flower_plugin/static/page/text.js";

const CASES = JSON.parse(readFileSync(new URL("../support/format_cases.json", import.meta.url)));
const RULES = {
    size, duration, ago, percent, count, escaped,
    signed_size: (bytes) => size(bytes, {signed: true}),
    escaped_lines: escapedLines
};

describe("figures and texts read as on the server", () => {
    test("every kind of case has its rule here", () => {
        const kinds = Object.keys(CASES).filter((kind) => !["_comment", "hidden"].includes(kind));
        assert.deepEqual(kinds.sort(), Object.keys(RULES).sort());
    });

    test("each case reads the same", () => {
        for (const [kind, rule] of Object.entries(RULES)) {
            for (const [value, text] of CASES[kind]) { assert.equal(rule(value), text, `${kind} of ${value}`); }
        }
    });

    test("the same characters are hidden", () => {
        for (const [first, last] of CASES.hidden) {
            for (const code of [first, last]) {
                assert.match(escaped(String.fromCodePoint(code)), /^\\/, code.toString(16));
            }
            const before = String.fromCodePoint(Math.max(0, first - 1));
            if (!CASES.hidden.some(([low, high]) => low <= first - 1 && first - 1 <= high) && first) {
                assert.equal(escaped(before), before);
            }
            assert.equal(escaped(String.fromCodePoint(last + 1)), String.fromCodePoint(last + 1));
        }
    });
});

test("what is not known has a dash", () => {
    for (const rule of [size, duration, percent, count]) { assert.equal(rule(undefined), "–"); }
});

test("time that is left is minutes and seconds", () => {
    assert.equal(left(119.4), "1:59");
    assert.equal(left(65), "1:05");
});

test("a long text is cut to a length with an ellipsis", () => {
    assert.equal(clip("abcdef", 6), "abcdef");
    assert.equal(clip("abcdefg", 6), "abcde…");
});
