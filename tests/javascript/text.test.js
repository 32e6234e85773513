import assert from "node:assert/strict";
import {test} from "node:test";
import {ago, clip, duration, left, size, visible} from "../../flower_plugin/static/page/text.js";

const MIB = 1024 * 1024;

test("a size has the unit in which it reads best", () => {
    const cases = [
        [null, "–"], [undefined, "–"], [0, "0 B"], [999, "999 B"], [1000, "1.0 KiB"], [1010, "1.0 KiB"],
        [100 * 1024, "100.0 KiB"], [MIB / 10, "0.1 MiB"], [200000, "0.2 MiB"], [3 * MIB, "3.0 MiB"],
        [1000 * MIB, "0.98 GiB"], [2048 * MIB, "2.00 GiB"], [-5 * MIB, "-5.0 MiB"], [3000 * 1024 * MIB, "3,000.00 GiB"]
    ];
    for (const [bytes, text] of cases) { assert.equal(size(bytes), text); }
});

test("a size just between two goes to the even one, as on the server", () => {
    assert.equal(size(0.25 * MIB), "0.2 MiB");
    assert.equal(size(0.75 * MIB), "0.8 MiB");
    assert.equal(size(2.5), "2 B");
});

test("a duration has three digits, or minutes and more", () => {
    const cases = [
        [null, "–"], [0.0000042, "4 µs"], [0.0123456, "12.3 ms"], [0.1, "100 ms"], [1, "1 s"], [12.3456, "12.3 s"],
        [60, "1 min"], [90, "1 min 30 s"], [3600, "1 h"], [3700, "1 h 1 min"], [172800, "2 days"]
    ];
    for (const [seconds, text] of cases) { assert.equal(duration(seconds), text); }
});

test("a relative time says how long ago or how far ahead", () => {
    const cases = [
        [2, "now"], [-4, "now"], [60, "60 s ago"], [600, "10 min ago"], [7200, "2 h ago"], [-7200, "in 2 h"],
        [864000, "10 days ago"]
    ];
    for (const [seconds, text] of cases) { assert.equal(ago(seconds), text); }
});

test("time that is left is minutes and seconds", () => {
    assert.equal(left(119.4), "1:59");
    assert.equal(left(65), "1:05");
});

test("what hides or turns characters is spelled out", () => {
    assert.equal(visible("a\u202eb\u0000\u200bc\x1b"), "a\\u202eb\\x00\\u200bc\\x1b");
    assert.equal(visible("tab\tline\nend é 😀"), "tab\tline\nend é 😀");
});

test("a long text is cut to a length with an ellipsis", () => {
    assert.equal(clip("abcdef", 6), "abcdef");
    assert.equal(clip("abcdefg", 6), "abcde…");
});
