// The command palette (Ctrl+K), and keys for the whole page.
import {openDialog} from "./dialog.js";
import {base, element} from "./dom.js";
import {Options} from "./options.js";

const MOST = 12;

const KEYS = [
    ["Ctrl+K", "Command palette"], ["/", "Search this list"], ["?", "Keys"],
    ["n", "Next failure of the group"], ["p", "Previous failure of the group"], ["Escape", "Close a dialog"]
];

// Whether all letters of a text are in another one, in their order.
export function fits(text, typed) {
    let at = 0;
    const low = text.toLowerCase();
    for (const letter of typed.toLowerCase().replace(/\s+/g, "")) {
        at = low.indexOf(letter, at) + 1;
        if (!at) { return false; }
    }
    return true;
}

/**
 * The commands for a typed text: fitting pages, actions and views, and searches for the text.
 *
 * @param {{text: string, meaning: string}[]} commands All commands of the page.
 * @param {string} typed What was typed.
 * @returns {object[]} At most twelve. A search has a `search`: the address of its list and the text.
 */
export function matching(commands, typed) {
    const text = typed.trim();
    const found = commands.filter((command) => fits(command.text, text)).slice(0, MOST - 2);
    const searches = text ? [["Search failures", "/trace/failures/all"], ["Search groups", "/trace/failures"]] : [];
    return [...found, ...searches.map(([label, path]) =>
        ({text: `${label}: ${text}`, meaning: "search", address: `${path}?q=${encodeURIComponent(text)}`}))];
}

function textOf(node) { return node.textContent.replace(/\s+/g, " ").trim(); }

function commandsHere() {
    const pages = [...document.querySelectorAll(".app-nav a.nav-link, .app-nav a.dropdown-item")].map((link) =>
        ({text: textOf(link), meaning: "page", run: () => link.click()}));
    const buttons = [...document.querySelectorAll(".tr-page .tr-actions :is(button, a):not([disabled])")];
    const actions = buttons.filter((one) => one.checkVisibility?.() ?? true).map((one) =>
        ({text: textOf(one), meaning: "action", run: () => one.click()}));
    const views = [...document.querySelectorAll(".tr-view a")].map((link) =>
        ({text: textOf(link), meaning: "view", run: () => link.click()}));
    const keys = {text: "Keys", meaning: "action", run: showKeys};
    return [...actions, ...views, ...pages, keys].filter((command) => command.text);
}

export function openPalette() {
    if (document.querySelector("dialog[open]")) { return; }
    const commands = commandsHere();
    const field = element("input", "form-control");
    field.setAttribute("aria-label", "Command or page");
    field.placeholder = "Command, page or search";
    [field.type, field.autocomplete, field.autofocus] = ["text", "off", true];
    const {dialog} = openDialog("Command palette", [field]);
    dialog.classList.add("tr-palette");
    const options = new Options(field, field.parentElement, (command) => {
        dialog.close("");
        if (command.address) { window.location.assign(base + command.address); } else { command.run(); }
    });
    const show = () => options.show(matching(commands, field.value), true);
    field.addEventListener("input", show);
    field.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" && event.key !== "Tab" && options.press(event.key)) { event.preventDefault(); }
    });
    show();
}

export function showKeys() {
    const list = element("dl", "tr-keys");
    for (const [key, meaning] of KEYS) { list.append(element("dt", "", key), element("dd", "", meaning)); }
    const close = element("button", "btn btn-outline-secondary", "Close");
    [close.type, close.autofocus] = ["submit", true];
    const buttons = element("div", "tr-actions tr-dialog-actions");
    buttons.append(close);
    openDialog("Keys", [list, buttons]);
}

function follow(relation) { document.querySelector(`a[rel="${relation}"]`)?.click(); }

function focusSearch() {
    const field = document.querySelector("input[data-search], input[type=search]");
    field?.focus();
    field?.select();
    return Boolean(field);
}

const ACTIONS = {
    "/": focusSearch, "?": showKeys, n: () => follow("next"), p: () => follow("prev")
};

function isTyping(target) {
    return target.isContentEditable || target.matches("input:not([type=checkbox]), textarea, select");
}

export function startKeys() {
    document.addEventListener("keydown", (event) => {
        if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
            event.preventDefault();
            openPalette();
            return;
        }
        if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) { return; }
        if (document.querySelector("dialog[open]") || !Object.hasOwn(ACTIONS, event.key)) { return; }
        event.preventDefault();
        ACTIONS[event.key]();
    });
}
