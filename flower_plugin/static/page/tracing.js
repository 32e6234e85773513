// The panel of a task that is traced for a while: remaining time and a stop button.
import {refresh} from "./refresh.js";
import {post} from "./requests.js";
import {left} from "./text.js";
import {toast} from "./toasts.js";

const panel = document.getElementById("tr-tracing");

function key(name) { return "trace:" + name; }

// Storage may be disabled; the panel is not shown then.
function stored(name) {
    try { return JSON.parse(window.sessionStorage.getItem(key(name)) || "null"); } catch { return null; }
}

function store(name, value) {
    try { window.sessionStorage.setItem(key(name), JSON.stringify(value)); } catch { return; }
}

function forget(name) {
    try { window.sessionStorage.removeItem(key(name)); } catch { return; }
}

export function tracing(name, seconds) {
    store(name, [Date.now(), seconds]);
    show();
}

function over(held) {
    const before = panel.hidden;
    panel.hidden = true;
    if (held) { forget(panel.dataset.task); }
    if (!before) { refresh(); }
}

function show() {
    if (!panel) { return; }
    const held = stored(panel.dataset.task);
    const rest = held ? held[1] - (Date.now() - held[0]) / 1000 : 0;
    if (rest <= 0) { over(held); return; }
    panel.hidden = false;
    const bar = document.getElementById("tr-tracing-bar");
    bar.max = held[1];
    bar.value = held[1] - rest;
    document.getElementById("tr-tracing-text").textContent = `Tracing all runs, ${left(rest)} left`;
}

async function stop() {
    try {
        await post(panel.dataset.address, JSON.stringify({name: panel.dataset.task, seconds: 0}));
        forget(panel.dataset.task);
        toast("Tracing stopped.");
        show();
    } catch (error) {
        toast(error.message, true);
    }
}

export function startTracing() {
    if (!panel) { return; }
    show();
    window.setInterval(show, 1000);
    document.getElementById("tr-tracing-stop").addEventListener("click", stop);
}
