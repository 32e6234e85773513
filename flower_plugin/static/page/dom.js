// Creates elements and reads the data in the page.
import {escapedLines} from "./text.js";

// The prefix of all URLs, such as /flower.
export const base = document.body.dataset.base || "";

export function data(id) {
    const block = document.getElementById(id);
    return block ? JSON.parse(block.textContent) : null;
}

export function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) { made.className = name; }
    if (text !== undefined) { made.textContent = escapedLines(text); }
    return made;
}

export function button(name, label) {
    const made = element("button", name);
    made.type = "button";
    made.setAttribute("aria-label", label);
    return made;
}

export function socketTo(path) {
    const scheme = window.location.protocol === "https:" ? "wss://" : "ws://";
    return new WebSocket(scheme + window.location.host + base + path);
}

// Seconds until the next attempt to connect.
export function backoff(tries) { return Math.min(15, Math.pow(1.6, tries)); }

export function onNewWidth(draw) {
    let width = window.innerWidth;
    let waiting = 0;
    window.addEventListener("resize", () => {
        if (window.innerWidth === width) { return; }
        width = window.innerWidth;
        window.clearTimeout(waiting);
        waiting = window.setTimeout(draw, 150);
    });
}
