// Sizes, durations and times for people, by the server's rule; and text with nothing hidden in it.

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

// Characters that hide or turn others, as the pages spell them out.
const UNSEEN = new RegExp(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb]",
    "g"
);

export function visible(text) {
    return String(text).replace(UNSEEN, (character) => {
        const code = character.charCodeAt(0);
        return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
    });
}

export function clip(text, most) {
    return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

// As Python rounds: what is just between two goes to the even one.
function fixed(value, digits) {
    const scale = 10 ** digits;
    const below = Math.floor(value * scale);
    const rounded = value * scale - below === 0.5 ? below + below % 2 : Math.round(value * scale);
    const shown = {minimumFractionDigits: digits, maximumFractionDigits: digits};
    return (rounded / scale).toLocaleString("en", shown);
}

export function size(bytes) {
    if (bytes === null || bytes === undefined) { return "–"; }
    const amount = Math.abs(bytes);
    if (amount >= 1000 * MIB) { return fixed(bytes / GIB, 2) + " GiB"; }
    if (amount >= MIB / 10) { return fixed(bytes / MIB, 1) + " MiB"; }
    if (amount >= 1000) { return fixed(bytes / KIB, 1) + " KiB"; }
    return fixed(bytes, 0) + " B";
}

function threeDigits(value) { return String(Number(value.toPrecision(3))); }

function minutes(seconds) {
    const whole = Math.floor(seconds / 60);
    const rest = seconds % 60;
    if (whole < 60) { return rest ? `${whole} min ${rest} s` : `${whole} min`; }
    const hours = Math.floor(whole / 60);
    if (hours >= 48) { return `${Math.floor(hours / 24)} days`; }
    return whole % 60 ? `${hours} h ${whole % 60} min` : `${hours} h`;
}

export function duration(seconds) {
    if (seconds === null || seconds === undefined) { return "–"; }
    if (seconds < 0.001) { return Math.round(seconds * 1e6) + " µs"; }
    if (seconds < 1) { return threeDigits(seconds * 1000) + " ms"; }
    if (seconds < 60) { return threeDigits(seconds) + " s"; }
    return minutes(Math.round(seconds));
}

export function count(number) {
    return number === null || number === undefined ? "–" : number.toLocaleString();
}

// How long ago, or how far ahead, in words.
export function ago(seconds) {
    const amount = Math.abs(seconds);
    if (amount < 5) { return "now"; }
    const [step, unit] =
        amount < 90 ? [1, "s"] : amount < 5400 ? [60, "min"] : amount < 129600 ? [3600, "h"] : [86400, "days"];
    const text = `${Math.round(amount / step)} ${unit}`;
    return seconds < -1 ? "in " + text : text + " ago";
}

// Minutes and seconds that are left, as 1:05.
export function left(seconds) {
    return Math.floor(seconds / 60) + ":" + String(Math.floor(seconds % 60)).padStart(2, "0");
}

export function exact(at, style = {dateStyle: "short", timeStyle: "medium"}) {
    return new Date(at * 1000).toLocaleString(undefined, style);
}
