// The input of the shell: keys, history, completions.
import {complete, continues, indentAfter} from "./python.js";
import {Completions} from "./completions.js";

const MOST_ROWS = 14;

export class Input {
    /**
     * @param {{input: HTMLTextAreaElement, prompt: Element, menu: Element}} elements
     * @param {import("./history.js").History} history
     * @param {{run: Function, ask: Function, interrupt: Function, isRunning: Function, clear: Function}} shell
     */
    constructor({input, prompt, menu}, history, shell) {
        this.input = input;
        this.prompt = prompt;
        this.history = history;
        this.shell = shell;
        this.leaving = false;
        this.completions = new Completions(menu, input, () => this.grow());
        input.addEventListener("input", () => { this.completions.hide(); this.grow(); });
        input.addEventListener("blur", () => this.completions.hide());
        input.addEventListener("keydown", (event) => this.pressed(event));
    }

    grow() {
        const lines = this.input.value.split("\n").length;
        this.input.rows = Math.max(1, Math.min(MOST_ROWS, lines));
        this.prompt.textContent = lines > 1 ? "..." : ">>>";
    }

    before() { return this.input.value.slice(0, this.input.selectionStart); }

    set(text) {
        this.input.value = text;
        this.grow();
    }

    insert(text) {
        this.input.setRangeText(text, this.input.selectionStart, this.input.selectionEnd, "end");
        this.grow();
    }

    newLine() { this.insert("\n" + indentAfter(this.before())); }

    // Restores an incomplete block, for its next line.
    restore(code) {
        if (!this.input.value) { this.set(code.replace(/\n*$/, "") + "\n" + indentAfter(code)); }
    }

    run() {
        const typed = this.input.value;
        if (!typed.trim()) { return; }
        if (continues(typed)) { this.insert("\n" + indentAfter(typed)); return; }
        const code = complete(typed);
        this.history.remember(code.replace(/\n$/, ""));
        this.set("");
        this.shell.run(code);
    }

    recall(step) {
        const code = this.history.recall(step, this.input.value);
        if (code === null) { return; }
        this.set(code);
        this.input.setSelectionRange(code.length, code.length);
    }

    ask() { this.shell.ask(this.input.value, this.input.selectionStart); }

    interruptOrClear() {
        if (this.shell.isRunning()) { this.shell.interrupt(); return; }
        this.history.leave();
        this.set("");
    }

    pressed(event) {
        // Tab completes; after Escape it leaves the field, for keyboard users.
        const left = this.leaving;
        this.leaving = event.key === "Escape";
        const action = (this.completions.open && this.inMenu(event.key)) || this.actionOf(event, left);
        if (!action) { return; }
        action();
        event.preventDefault();
    }

    inMenu(key) {
        const take = () => this.completions.take();
        return {
            ArrowDown: () => this.completions.move(1),
            ArrowUp: () => this.completions.move(-1),
            Enter: take, Tab: take,
            Escape: () => this.completions.hide()
        }[key];
    }

    actionOf(event, left) {
        const controlled = event.ctrlKey && this.withControl(event.key);
        if (controlled) { return controlled; }
        const before = this.before();
        const after = this.input.value.slice(this.input.selectionStart);
        // Tab completes after a word and leaves the field elsewhere.
        const completes = !event.shiftKey && !left && /[\w.]$/.test(before);
        return {
            Enter: () => (event.shiftKey ? this.newLine() : this.run()),
            Tab: completes && (() => this.ask()),
            ArrowUp: !before.includes("\n") && (() => this.recall(-1)),
            ArrowDown: !after.includes("\n") && (() => this.recall(1))
        }[event.key];
    }

    withControl(key) {
        const noSelection = this.input.selectionStart === this.input.selectionEnd;
        return {
            " ": () => this.ask(),
            c: noSelection && (() => this.interruptOrClear()),
            l: () => this.shell.clear()
        }[key];
    }
}
