// The transcript: input and output, always as text, never as markup.
import {element} from "../page/dom.js";
import {escapedLines} from "../page/text.js";
import {coloured, withoutEscapes} from "./python.js";

const MOST_LINES = 2000;
// Consecutive output is joined up to this length, characters.
const MOST_IN_ONE = 100000;

function clean(text) { return escapedLines(withoutEscapes(text)); }

function typed(text) {
    const parts = [];
    clean(text).replace(/\n$/, "").split("\n").forEach((part, at) => {
        const prompt = element("span", "tr-prompt", at ? "... " : ">>> ");
        prompt.setAttribute("aria-hidden", "true");
        if (at) { parts.push("\n"); }
        parts.push(prompt, ...coloured(part).map(([code, kind]) => (kind ? element("span", kind, code) : code)));
    });
    return parts;
}

export class Transcript {
    constructor(log) { this.log = log; }

    // Adds an entry and returns its element.
    add(kind, text, who) {
        const stay = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
        const shown = this.continued(kind, text) || this.begun(kind, text, who);
        if (stay) { this.toEnd(); }
        return shown;
    }

    continued(kind, text) {
        const last = this.log.lastElementChild;
        const fits = kind === "stdout" && last?.dataset.kind === "stdout" && last.textContent.length < MOST_IN_ONE;
        if (!fits) { return null; }
        last.querySelector("pre").append(clean(text));
        return last;
    }

    begun(kind, text, who) {
        const line = element("div", "tr-log tr-log-" + kind);
        line.dataset.kind = kind;
        if (who) { line.append(element("span", "tr-log-who", who)); }
        const pre = element("pre");
        pre.append(...(kind === "input" ? typed(text) : [clean(text)]));
        line.append(pre);
        this.log.append(line);
        while (this.log.childElementCount > MOST_LINES) { this.log.firstElementChild.remove(); }
        return line;
    }

    lastInput() { return [...this.log.querySelectorAll(".tr-log-input")].pop(); }
    toEnd() { this.log.scrollTop = this.log.scrollHeight; }
    clear() { this.log.replaceChildren(); }
    text() { return [...this.log.querySelectorAll("pre")].map((pre) => pre.textContent).join("\n"); }
}
