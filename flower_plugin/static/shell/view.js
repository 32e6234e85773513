// The shell's card on the page.
import {element} from "../page/dom.js";
import {duration, escaped} from "../page/text.js";
import {Transcript} from "./transcript.js";

const MODES = {
    live: ["tr-success", "In the process that failed"],
    recreated: ["tr-info", "Recreated from the capture in a sandbox"]
};

function part(name) { return document.getElementById("console-" + name); }

export class View {
    constructor(root) {
        this.root = root;
        this.mode = part("mode");
        this.watchers = part("watchers");
        this.frames = part("frames");
        this.stop = part("stop");
        this.state = part("state");
        this.transcript = new Transcript(part("log"));
        this.input = null;
    }

    add(kind, text, who) { return this.transcript.add(kind, text, who); }
    addDuration(seconds) { this.add("event", "took " + duration(seconds)); }
    say(text) { this.state.textContent = text; }

    showMode(word) {
        const [colour, meaning] = MODES[word] || ["tr-muted", ""];
        this.mode.textContent = word;
        this.mode.className = "tr-badge " + colour;
        this.mode.title = meaning;
    }

    showWatchers(names, others) {
        this.watchers.textContent = others.length ? "with " + others.map(escaped).join(", ") : "";
        this.watchers.title = "Watching: " + names.map(escaped).join(", ");
    }

    showFrames(frames, chosen) {
        this.frames.replaceChildren(...frames.map((frame, index) => {
            const file = frame.file.split("/").pop();
            const option = element("option", "", `${index}  ${frame.function}  ${file}:${frame.line}`);
            option.value = String(index);
            return option;
        }));
        this.frames.disabled = false;
        this.markFrame(chosen);
    }

    markFrame(index) {
        this.frames.value = String(index);
        for (const frame of document.querySelectorAll("[data-frame]")) {
            frame.classList.toggle("tr-in-shell", Number(frame.dataset.frame) === index);
        }
    }

    showBusy(busy) {
        this.stop.disabled = !busy;
        this.root.classList.toggle("tr-running", busy);
        this.root.setAttribute("aria-busy", busy ? "true" : "false");
    }

    restore(code, echo) {
        if (echo && echo === this.transcript.lastInput()) { echo.remove(); }
        this.input.restore(code);
    }

    showCompletions(found, start) {
        if (!found.length) { this.input.completions.hide(); this.say("No completions"); return; }
        if (document.activeElement !== this.input.input) { this.input.completions.hide(); return; }
        this.input.completions.show(found, start);
        if (found.length > 1) { this.say(found.length + " completions"); }
    }
}
