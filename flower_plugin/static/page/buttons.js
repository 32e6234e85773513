// Buttons that copy, and buttons that send requests to the monitor.
import {copy} from "./clipboard.js";
import {ask} from "./dialog.js";
import {refresh} from "./refresh.js";
import {post} from "./requests.js";
import {bodyOfButton} from "./selection.js";
import {toast} from "./toasts.js";
import {tracing} from "./tracing.js";

/**
 * The result of a request.
 *
 * @param {object} value The server's response.
 * @param {string} done The button's success message.
 * @returns {{text: string, bad: boolean}}
 */
export function outcome(value, done) {
    if (value.workers && !value.workers.length) {
        return {text: "No worker replied. Workers need celery-trace and the same trace_shell_key.", bad: true};
    }
    const refused = (value.workers || []).find((worker) => !worker.ok);
    if (refused) { return {text: refused.worker + ": " + refused.why, bad: true}; }
    const failed = (value.deliveries || []).find((delivery) => !delivery.ok);
    if (failed) { return {text: "Not delivered: " + failed.error, bad: true}; }
    return {text: done + (value.task_id ? ` Task id: ${value.task_id}.` : ""), bad: false};
}

async function order(button) {
    const value = await post(button.dataset.post, bodyOfButton(button), button.controller.signal);
    const {text, bad} = outcome(value, button.dataset.done);
    toast(text, bad);
    if (button.dataset.lasts && value.workers?.length !== 0) {
        tracing(button.dataset.task, Number(button.dataset.lasts));
    }
    if (button.dataset.then) { window.location.assign(button.dataset.then); }
    refresh();
}

// A second click cancels a pending request.
async function orderOnce(button) {
    if (button.controller) { button.controller.abort(); return; }
    const {ask: question, action} = button.dataset;
    if (question && !await ask(question, action || button.textContent.trim().replace(/\s+/g, " "))) { return; }
    const label = button.textContent;
    button.controller = new AbortController();
    button.setAttribute("aria-busy", "true");
    button.textContent = (button.dataset.busy || "…") + " (cancel)";
    try {
        await order(button);
    } catch (error) {
        const cancelled = error.name === "AbortError";
        toast(cancelled ? "Cancelled." : error.message, !cancelled);
    } finally {
        button.controller = null;
        button.removeAttribute("aria-busy");
        button.textContent = label;
    }
}

async function copyFor(button, text) {
    await copy(text);
    toast(button.dataset.done);
}

function clicked(button) {
    if (button.dataset.copy) { return copyFor(button, document.getElementById(button.dataset.copy).value); }
    if (button.hasAttribute("data-copy-address")) {
        return copyFor(button, window.location.origin + window.location.pathname);
    }
    return button.dataset.post ? orderOnce(button) : null;
}

export function startButtons() {
    document.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (button) { clicked(button); }
    });
}
