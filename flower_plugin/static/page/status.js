// What the page says about its line to the monitor.

const DOTS = {live: " status-dot-live", cut: " status-dot-error"};
const dot = document.getElementById("tr-live-dot");
const text = document.getElementById("tr-live-text");
const banner = document.getElementById("tr-cut-off");

let said = {state: "", words: ""};
let held = false;

function show() {
    if (!text) { return; }
    text.textContent = said.state === "live" && held ? "Waits while text is selected" : said.words;
    dot.className = "status-dot" + (DOTS[said.state] || "");
}

export function say(state, words) {
    said = {state, words};
    show();
}

// Whether something newer waits for the reader to let go of the text that they have selected.
export function holdBack(wanted) {
    held = wanted;
    show();
}

export function cutOff(words) {
    if (!banner) { return; }
    banner.hidden = !words;
    banner.textContent = words || "";
}
