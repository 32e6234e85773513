// The completion menu.
import {element} from "../page/dom.js";

const MOST = 60;

export class Completions {
    constructor(menu, input, taken) {
        this.menu = menu;
        this.input = input;
        this.taken = taken;
        this.items = [];
        this.chosen = -1;
        this.start = 0;
    }

    get open() { return !this.menu.hidden; }

    hide() {
        this.menu.hidden = true;
        this.items = [];
        this.chosen = -1;
        this.input.removeAttribute("aria-activedescendant");
        this.input.removeAttribute("aria-expanded");
    }

    show(found, start) {
        this.items = found.slice(0, MOST);
        this.start = start;
        if (found.length === 1) { this.chosen = 0; this.take(); return; }
        this.menu.replaceChildren(...this.items.map((item, at) => this.line(item, at)));
        this.menu.hidden = false;
        this.mark(0);
    }

    line(item, at) {
        const line = element("li", "", item);
        line.id = "completion-" + at;
        line.setAttribute("role", "option");
        line.addEventListener("mousedown", (event) => {
            event.preventDefault();
            this.chosen = at;
            this.take();
        });
        return line;
    }

    move(step) { this.mark(this.chosen + step); }

    mark(at) {
        this.chosen = (at + this.items.length) % this.items.length;
        [...this.menu.children].forEach((line, number) => {
            line.setAttribute("aria-selected", number === this.chosen ? "true" : "false");
        });
        this.menu.children[this.chosen].scrollIntoView({block: "nearest"});
        this.input.setAttribute("aria-activedescendant", "completion-" + this.chosen);
    }

    take() {
        const item = this.items[this.chosen];
        if (item !== undefined) { this.input.setRangeText(item, this.start, this.input.selectionStart, "end"); }
        this.hide();
        this.taken();
        this.input.focus();
    }
}
