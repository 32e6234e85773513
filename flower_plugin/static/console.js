// The shell of a failure: a WebSocket, a transcript, an input with completion and history.
import {copy} from "./page/clipboard.js";
import {backoff, socketTo} from "./page/dom.js";
import {toast} from "./page/toasts.js";
import {History} from "./shell/history.js";
import {Input} from "./shell/input.js";
import {Session} from "./shell/session.js";
import {View} from "./shell/view.js";

const PING_MS = 25000;
// The close code of a refused shell.
const REFUSED = 4000;

const root = document.getElementById("tr-console");
const log = document.getElementById("console-log");
const field = document.getElementById("console-input");
const view = new View(root);
const session = new Session(view, root.dataset.user, send);
let socket = null;
let tries = 0;

function send(message) {
    if (!socket || socket.readyState !== WebSocket.OPEN) { return false; }
    socket.send(JSON.stringify(message));
    return true;
}

// The session is opened when the input gets the focus, not when the page loads.
function begin() { if (!socket) { connect(); } }

function connect() {
    socket = socketTo("/trace/shell/" + encodeURIComponent(root.dataset.failure));
    if (!tries) { view.showMode("connecting"); }
    socket.addEventListener("message", (event) => {
        const message = JSON.parse(event.data);
        if (message.type === "hello") { tries = 0; }
        session.receive(message);
    });
    socket.addEventListener("close", (event) => closed(event.code));
}

function closed(code) {
    view.frames.disabled = true;
    session.disconnected();
    if (code === REFUSED) {
        field.disabled = true;
        view.showMode("refused");
        view.say("Shell refused: " + session.refused);
        return;
    }
    tries += 1;
    view.showMode("disconnected, reconnecting");
    window.setTimeout(connect, backoff(tries) * 1000);
}

const input = new Input(
    {input: field, prompt: document.getElementById("console-prompt"), menu: document.getElementById("console-menu")},
    new History("celery-trace-history:" + root.dataset.user, () => window.localStorage),
    {
        run(code) {
            if (!session.run(code)) { begin(); }
            view.transcript.toEnd();
        },
        ask: (code, cursor) => session.complete(code, cursor),
        interrupt: () => session.interrupt(),
        isRunning: () => session.running !== null,
        clear: () => view.transcript.clear()
    });
view.input = input;

// Phone keyboards have no Tab, arrow and Ctrl keys.
const KEYS = {
    complete: () => input.ask(), earlier: () => input.recall(-1), later: () => input.recall(1),
    line: () => input.newLine()
};
for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("mousedown", (event) => event.preventDefault());
    button.addEventListener("click", () => {
        field.focus();
        KEYS[button.dataset.key]();
    });
}

log.addEventListener("keydown", (event) => {
    if (event.key !== "c" || !event.ctrlKey || window.getSelection().toString()) { return; }
    session.interrupt();
    event.preventDefault();
});
view.stop.addEventListener("click", () => session.interrupt());
view.frames.addEventListener("change", () => send({type: "frame", index: Number(view.frames.value)}));
document.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-choose]");
    if (!chosen) { return; }
    session.sendOrWait({type: "frame", index: Number(chosen.dataset.choose)});
    field.focus();
});
document.getElementById("console-copy").addEventListener("click", async () => {
    await copy(view.transcript.text());
    toast("Transcript copied.");
});
window.setInterval(() => send({type: "ping"}), PING_MS);

field.addEventListener("focus", begin);
field.disabled = false; // it was, so that no key is lost while the scripts load
view.mode.textContent = "ready";
if (window.location.hash === "#shell") { field.focus(); }
