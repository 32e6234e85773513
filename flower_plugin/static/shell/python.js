// Python input: syntax colors and indentation.

const KEYWORDS = new Set((
    "False None True and as assert async await break class continue def del elif else except finally for from " +
    "global if import in is lambda nonlocal not or pass raise return try while with yield").split(" "));

const COMMENT = "#[^\\n]*";
const LONG_STRING = "\"\"\"[\\s\\S]*?(?:\"\"\"|$)|'''[\\s\\S]*?(?:'''|$)";
const STRING = "\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?";
const TOKENS = new RegExp(`(${COMMENT})|(${LONG_STRING}|${STRING})|\\b(\\d[\\w.]*)|([A-Za-z_]\\w*)`, "g");

function kindOf([, comment, string, number, word]) {
    if (comment) { return "py-c1"; }
    if (string) { return "py-s1"; }
    if (number) { return "py-mi"; }
    return KEYWORDS.has(word) ? "py-k" : "";
}

// Code in pieces: [text, CSS class], the class empty for plain text.
export function coloured(code) {
    const pieces = [];
    let at = 0;
    for (const token of code.matchAll(TOKENS)) {
        const kind = kindOf(token);
        if (!kind) { continue; }
        if (token.index > at) { pieces.push([code.slice(at, token.index), ""]); }
        pieces.push([token[0], kind]);
        at = token.index + token[0].length;
    }
    if (at < code.length) { pieces.push([code.slice(at), ""]); }
    return pieces;
}

// The indentation of the next line: as the last line, one level more after a colon.
export function indentAfter(code) {
    const last = code.replace(/\s+$/, "").split("\n").pop();
    const indent = last.match(/^\s*/)[0];
    return /:\s*(#.*)?$/.test(last) ? indent + "    " : indent;
}

// As in Python's shell: inside a block Enter adds a line, and an empty line runs it.
export function continues(code) {
    const lines = code.split("\n");
    const last = lines[lines.length - 1];
    return lines.length > 1 && last.trim() !== "" && /^\s/.test(last);
}

// The code to send: a block ends with an empty line.
export function complete(code) { return code.replace(/\s+$/, "") + (code.includes("\n") ? "\n" : ""); }

// Terminal escape sequences are removed.
const ESCAPES = new RegExp(
    "\\u001b(?:\\[[0-9;?]*[ -/]*[@-~]|\\][^\\u0007\\u001b]*(?:\\u0007|\\u001b\\\\)?|[@-_])", "g");

export function withoutEscapes(text) { return String(text).replace(ESCAPES, "").replace(/\r\n?/g, "\n"); }
