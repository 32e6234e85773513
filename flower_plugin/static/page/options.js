// A list of options below a text field, for completions and the palette: the combobox pattern of ARIA.
import {element} from "./dom.js";

let number = 0;

/**
 * The option after a key.
 *
 * @param {string} key ArrowDown, ArrowUp, Home or End.
 * @param {number} chosen The index before; -1 for none.
 * @param {number} count How many options there are.
 * @returns {number} The index; -1 if there are none.
 */
export function moved(key, chosen, count) {
    if (!count) { return -1; }
    if (key === "Home") { return 0; }
    if (key === "End") { return count - 1; }
    return key === "ArrowDown" ? (chosen + 1) % count : (Math.max(chosen, 0) - 1 + count) % count;
}

export class Options {
    /**
     * @param {HTMLInputElement} field The text field.
     * @param {Element} place Where the list is.
     * @param {function(object): void} choose Called with the chosen option.
     */
    constructor(field, place, choose) {
        this.field = field;
        this.choose = choose;
        this.shown = [];
        this.chosen = -1;
        number += 1;
        this.list = element("ul", "tr-options");
        this.list.id = `tr-options-${number}`;
        this.list.setAttribute("role", "listbox");
        this.list.setAttribute("aria-label", "Suggestions");
        place.append(this.list);
        field.setAttribute("role", "combobox");
        field.setAttribute("aria-autocomplete", "list");
        field.setAttribute("aria-controls", this.list.id);
        // Before the field loses the focus.
        this.list.addEventListener("mousedown", (event) => {
            const item = event.target.closest("li");
            if (!item) { return; }
            event.preventDefault();
            this.choose(this.shown[Number(item.dataset.at)]);
        });
        this.show([]);
    }

    /** Show options: `text` and `meaning` each; the first is chosen if `first`. */
    show(options, first = false) {
        this.shown = options;
        this.list.replaceChildren(...options.map((option, at) => {
            const item = element("li");
            item.id = `${this.list.id}-${at}`;
            item.dataset.at = at;
            item.setAttribute("role", "option");
            item.append(element("span", "", option.text), element("span", "", option.meaning || ""));
            return item;
        }));
        this.list.hidden = !options.length;
        this.field.setAttribute("aria-expanded", String(options.length > 0));
        this.mark(first && options.length ? 0 : -1);
    }

    mark(at) {
        this.chosen = at;
        [...this.list.children].forEach((item, index) => {
            item.setAttribute("aria-selected", String(index === at));
            if (index === at) { item.scrollIntoView?.({block: "nearest"}); }
        });
        if (at < 0) { this.field.removeAttribute("aria-activedescendant"); return; }
        this.field.setAttribute("aria-activedescendant", `${this.list.id}-${at}`);
    }

    // Whether the key was used.
    press(key) {
        if (!this.shown.length) { return false; }
        if (key === "ArrowDown" || key === "ArrowUp") {
            this.mark(moved(key, this.chosen, this.shown.length));
            return true;
        }
        if (key === "Escape") { this.show([]); return true; }
        if ((key === "Enter" || key === "Tab") && this.chosen >= 0) {
            this.choose(this.shown[this.chosen]);
            return true;
        }
        return false;
    }
}
