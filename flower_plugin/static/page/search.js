// The search field: completions from the store, and saved views.
import {openDialog} from "./dialog.js";
import {base, element} from "./dom.js";
import {Options} from "./options.js";
import {refresh} from "./refresh.js";
import {post} from "./requests.js";
import {toast} from "./toasts.js";

const WAIT_MS = 120;

/**
 * A search with a completion.
 *
 * @param {string} text The search.
 * @param {number} caret Where the cursor is.
 * @param {{start: number, text: string}} suggestion The completion.
 * @returns {{text: string, caret: number}} The search, and where the cursor is then.
 */
export function completed(text, caret, suggestion) {
    const before = text.slice(0, suggestion.start) + suggestion.text;
    const rest = text.slice(caret);
    const doubled = before.endsWith(" ") && rest.startsWith(" ");
    return {text: before + (doubled ? rest.slice(1) : rest), caret: before.length};
}

async function suggestionsOf(field) {
    const text = field.value.slice(0, field.selectionStart);
    const query = new URLSearchParams({list: field.dataset.search, q: text});
    const answer = await fetch(`${base}/api/trace/suggestions?${query}`, {credentials: "same-origin"});
    return answer.ok ? (await answer.json()).suggestions : [];
}

function startField(field) {
    let waiting = 0;
    let asked = 0;
    let options = null;
    async function look() {
        asked += 1;
        const mine = asked;
        const found = await suggestionsOf(field).catch(() => []);
        // A later question is on its way, or the user is elsewhere.
        if (mine === asked && document.activeElement === field) { options.show(found); }
    }
    function lookSoon() {
        window.clearTimeout(waiting);
        waiting = window.setTimeout(look, WAIT_MS);
    }
    function close() {
        window.clearTimeout(waiting);
        asked += 1;
        options.show([]);
    }
    options = new Options(field, field.parentElement, (suggestion) => {
        const {text, caret} = completed(field.value, field.selectionStart, suggestion);
        field.value = text;
        field.setSelectionRange(caret, caret);
        close();
        lookSoon();
    });
    field.addEventListener("input", lookSoon);
    field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && options.chosen < 0) { close(); return; }
        if (options.press(event.key)) { event.preventDefault(); return; }
        if (event.key === "ArrowDown") { event.preventDefault(); look(); }
    });
    field.addEventListener("blur", close);
}

async function titleOf() {
    const label = element("label", "", "Title");
    const field = element("input", "form-control");
    [field.id, field.maxLength, field.required, field.autofocus] = ["tr-view-title", 80, true, true];
    label.htmlFor = field.id;
    const buttons = element("div", "tr-actions tr-dialog-actions");
    const [cancel, go] = [element("button", "btn btn-outline-secondary", "Cancel"),
        element("button", "btn btn-primary", "Save")];
    [cancel.type, go.type, go.value] = ["button", "submit", "yes"];
    buttons.append(cancel, go);
    const {dialog, closed} = openDialog("Save view", [label, field, buttons]);
    cancel.addEventListener("click", () => dialog.close(""));
    return await closed === "yes" ? field.value.trim() : "";
}

async function save(button) {
    const title = await titleOf();
    if (!title) { return; }
    const {list, query, saveView} = button.dataset;
    try {
        await post(saveView, JSON.stringify({list, title, query}));
        toast("View saved.");
        refresh();
    } catch (error) {
        toast(error.message, true);
    }
}

export function startSearch() {
    document.querySelectorAll("input[data-search]").forEach(startField);
    document.addEventListener("click", (event) => {
        const button = event.target.closest("[data-save-view]");
        if (button) { save(button); }
    });
}
