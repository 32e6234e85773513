// Forms that send their fields to the monitor as JSON.
import {refresh} from "./refresh.js";
import {post} from "./requests.js";
import {toast} from "./toasts.js";

/**
 * The fields of a form as the body of a request.
 *
 * @param {Iterable<{name: string, value: string, dataset: object}>} fields Fields; those without a name are left out.
 * @returns {object} Values by name; with `data-number` they are numbers.
 */
export function bodyOf(fields) {
    const named = [...fields].filter((field) => field.name);
    return Object.fromEntries(named.map((field) =>
        [field.name, "number" in field.dataset ? Number(field.value) : field.value]));
}

async function send(form) {
    const submit = form.querySelector("[type=submit]");
    submit.disabled = true;
    try {
        await post(form.dataset.post, JSON.stringify(bodyOf(form.elements)));
        toast(form.dataset.done);
        if ("clear" in form.dataset) { form.reset(); }
        refresh();
    } catch (error) {
        toast(error.message, true);
    } finally {
        submit.disabled = false;
    }
}

export function startForms() {
    document.addEventListener("submit", (event) => {
        if (!event.target.dataset.post) { return; }
        event.preventDefault();
        send(event.target);
    });
}
