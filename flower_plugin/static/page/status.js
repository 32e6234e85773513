// Shows the state of the connection to the monitor.

const DOTS = {live: " status-dot-live", error: " status-dot-error"};
const dot = document.getElementById("tr-live-dot");
const label = document.getElementById("tr-live-text");
const banner = document.getElementById("tr-cut-off");

let status = {state: "", text: ""};
let paused = false;

function show() {
    if (!label) { return; }
    label.textContent = status.state === "live" && paused ? "Paused while text is selected" : status.text;
    dot.className = "status-dot" + (DOTS[status.state] || "");
}

export function setStatus(state, text) {
    status = {state, text};
    show();
}

// Whether an update waits for the end of a text selection.
export function setPaused(wanted) {
    paused = wanted;
    show();
}

export function showBanner(text) {
    if (!banner) { return; }
    banner.hidden = !text;
    banner.textContent = text || "";
}
