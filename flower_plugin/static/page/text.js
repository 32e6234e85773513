// Formats figures and texts by the rules of celery_trace/text; tests/support/format_cases.json tests both.

const NONE = "–";
const SIZES = ["KiB", "MiB", "GiB", "TiB"];
const [MINUTE, HOUR, DAY] = [60, 3600, 86400];
const UNITS = {1: "s", [MINUTE]: "min", [HOUR]: "h", [DAY]: "d"};

function unknown(value) { return value === null || value === undefined; }

// Rounds half away from zero.
function rounded(value, digits) {
    const scale = 10 ** digits;
    return Math.sign(value) * Math.floor(Math.abs(value) * scale + 0.5) / scale;
}

function decimal(value, digits) {
    return rounded(value, digits).toLocaleString("en", {maximumFractionDigits: digits});
}

function signOf(bytes, signed) {
    if (bytes <= -0.5) { return "-"; }
    return signed && bytes >= 0.5 ? "+" : "";
}

// Bytes in the largest fitting unit: 512 B, 195.3 KiB. With signed, positive values get a plus sign.
export function size(bytes, {signed = false} = {}) {
    if (unknown(bytes)) { return NONE; }
    const sign = signOf(bytes, signed);
    const value = Math.abs(bytes);
    if (rounded(value, 0) < 1024) { return `${sign}${rounded(value, 0)} B`; }
    let power = 1;
    while (power < SIZES.length && rounded(value / 1024 ** power, 1) >= 1024) { power += 1; }
    return `${sign}${rounded(value / 1024 ** power, 1).toFixed(1)} ${SIZES[power - 1]}`;
}

function inTwoUnits(seconds) {
    const [larger, smaller] = [[MINUTE, 1, HOUR], [HOUR, MINUTE, DAY], [DAY, HOUR, Infinity]].find(
        ([, unit, most]) => rounded(seconds / unit, 0) * unit < most);
    const all = rounded(seconds / smaller, 0);
    const each = larger / smaller;
    const rest = all % each;
    return `${Math.floor(all / each)} ${UNITS[larger]}${rest ? ` ${rest} ${UNITS[smaller]}` : ""}`;
}

// Seconds in one or two units: 250 ms, 9.5 s, 1 min 30 s, 1 h 5 min, 3 d 2 h.
export function duration(seconds) {
    if (unknown(seconds)) { return NONE; }
    if (seconds <= 0) { return seconds ? "-" + duration(-seconds) : "0 s"; }
    for (const [unit, scale, most] of [["µs", 1e6, 1000], ["ms", 1e3, 1000], ["s", 1, MINUTE]]) {
        const value = seconds * scale;
        if (rounded(value, 0) < most) { return `${decimal(value, rounded(value, 1) < 10 ? 1 : 0)} ${unit}`; }
    }
    return inTwoUnits(seconds);
}

// A relative time in one unit: now, 40 s ago, in 10 min.
export function ago(seconds) {
    const amount = Math.abs(seconds);
    if (amount < 5) { return "now"; }
    const [, unit] = [[1.5 * MINUTE, 1], [1.5 * HOUR, MINUTE], [1.5 * DAY, HOUR], [Infinity, DAY]].find(
        ([most]) => amount < most);
    const text = `${rounded(amount / unit, 0)} ${UNITS[unit]}`;
    return seconds < 0 ? "in " + text : text + " ago";
}

// A share as a percentage: 20 %, 12.5 %, 0.52 %.
export function percent(share) {
    return unknown(share) ? NONE : decimal(share * 100, Math.abs(share * 100) < 1 ? 2 : 1) + " %";
}

// A number with thousands separators; below 100 with one decimal, unless it is zero.
export function count(number) { return unknown(number) ? NONE : decimal(number, Math.abs(number) < 100 ? 1 : 0); }

export function clip(text, most) { return text.length > most ? text.slice(0, most - 1) + "…" : text; }

// Remaining minutes and seconds, as 1:05.
export function left(seconds) {
    return Math.floor(seconds / 60) + ":" + String(Math.floor(seconds % 60)).padStart(2, "0");
}

export function exact(at, style = {dateStyle: "short", timeStyle: "medium"}) {
    return new Date(at * 1000).toLocaleString(undefined, style);
}

// Invisible and direction characters: first and last of each range.
const HIDDEN_RANGES = [
    [0x0000, 0x001F], [0x007F, 0x009F], [0x00AD, 0x00AD], [0x034F, 0x034F], [0x061C, 0x061C], [0x115F, 0x1160],
    [0x17B4, 0x17B5], [0x180B, 0x180F], [0x200B, 0x200F], [0x2028, 0x202E], [0x2060, 0x206F], [0x3164, 0x3164],
    [0xD800, 0xDFFF], [0xFEFF, 0xFEFF], [0xFFA0, 0xFFA0], [0xFFF0, 0xFFFB], [0x13430, 0x1343F], [0x1BCA0, 0x1BCA3],
    [0x1D173, 0x1D17A], [0xE0000, 0xE0FFF]
];

function hiddenBut(kept) {
    const ranges = HIDDEN_RANGES.map((range) => range.map((code) => `\\u{${code.toString(16)}}`).join("-"));
    return new RegExp(`${kept ? `(?![${kept}])` : ""}[${ranges.join("")}]`, "gu");
}

const HIDDEN = hiddenBut("");
const HIDDEN_IN_LINES = hiddenBut("\\n\\t");
const SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"};

function escapeOf(character) {
    const code = character.codePointAt(0);
    const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return SHORT[character] || "\\" + letter + code.toString(16).padStart(digits, "0");
}

// A single-line text with hidden characters as Python escapes.
export function escaped(text) { return String(text).replace(HIDDEN, escapeOf); }

// A multi-line text with hidden characters as Python escapes, except line feeds and tabs.
export function escapedLines(text) { return String(text).replace(HIDDEN_IN_LINES, escapeOf); }
