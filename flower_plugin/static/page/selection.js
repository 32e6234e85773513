// The selection of rows of a table, and the buttons that act on it.

function picks(root) { return [...root.querySelectorAll("[data-pick]")]; }

// The values of the selected rows in a container.
export function pickedIn(root) { return picks(root).filter((box) => box.checked).map((box) => box.dataset.pick); }

/**
 * The body of a button's request.
 *
 * @param {string|undefined} body The button's own, JSON.
 * @param {string} name The name of the list.
 * @param {string[]} values The selected rows.
 * @returns {string} JSON with both.
 */
export function bodyWith(body, name, values) { return JSON.stringify({...JSON.parse(body || "{}"), [name]: values}); }

// The body of a button that acts on selected rows, or its own.
export function bodyOfButton(button) {
    const root = button.dataset.picked && document.getElementById(button.dataset.picked);
    return root ? bodyWith(button.dataset.body, button.dataset.key || "ids", pickedIn(root)) : button.dataset.body;
}

function show(root) {
    const number = pickedIn(root).length;
    for (const button of document.querySelectorAll(`[data-picked="${root.id}"]`)) {
        button.disabled = !number;
        const count = button.querySelector("[data-picked-count]");
        if (count) { count.textContent = number || ""; }
    }
    const all = root.querySelector("[data-pick-all]");
    if (!all) { return; }
    all.checked = number > 0 && number === picks(root).length;
    all.indeterminate = number > 0 && !all.checked;
}

export function startSelection() {
    const showAll = () => document.querySelectorAll("[data-picking]").forEach(show);
    document.addEventListener("change", (event) => {
        const root = event.target.closest("[data-picking]");
        if (!root) { return; }
        if (event.target.matches("[data-pick-all]")) {
            for (const box of picks(root)) { box.checked = event.target.checked; }
        }
        show(root);
    });
    document.addEventListener("trace:fresh", showAll);
    showAll();
}
