// Our own dialog. The browser keeps the focus inside, closes it with Escape and gives the focus back.
import {element} from "./dom.js";

let number = 0;

function choice(name, label, value) {
    const made = element("button", name, label);
    made.type = "submit";
    made.value = value;
    return made;
}

/**
 * A dialog with a form that closes it.
 *
 * @param {string} title Its heading.
 * @param {Node[]} parts What the form has below it.
 * @returns {{dialog: HTMLDialogElement, closed: Promise<string>}} The value of the pressed button, or "".
 */
export function openDialog(title, parts) {
    const dialog = element("dialog", "tr-dialog");
    const heading = element("h2", "tr-dialog-title", title);
    number += 1;
    heading.id = `tr-dialog-${number}`;
    dialog.setAttribute("aria-labelledby", heading.id);
    const form = element("form");
    form.method = "dialog";
    form.append(heading, ...parts);
    dialog.append(form);
    document.body.append(dialog);
    const closed = new Promise((resolve) => {
        dialog.addEventListener("close", () => {
            dialog.remove();
            resolve(dialog.returnValue);
        });
    });
    // A click outside of the form is on the dialog itself.
    dialog.addEventListener("click", (event) => { if (event.target === dialog) { dialog.close(""); } });
    dialog.showModal();
    return {dialog, closed};
}

/**
 * Ask before something is changed.
 *
 * @param {string} text What will be done.
 * @param {string} action The label of the button that does it.
 * @returns {Promise<boolean>} Whether it was confirmed.
 */
export async function ask(text, action = "Continue") {
    const buttons = element("div", "tr-actions tr-dialog-actions");
    const go = choice("btn btn-primary", action, "yes");
    go.autofocus = true;
    buttons.append(choice("btn btn-outline-secondary", "Cancel", ""), go);
    return await openDialog(text, [buttons]).closed === "yes";
}
