// A page for modules that need one: they find its window and document when they are imported after this.
import {JSDOM} from "jsdom";

export function openPage(body, url = "http://monitor.example/trace") {
    const {window} = new JSDOM(`<!doctype html><body data-base="">${body}</body>`, {url, pretendToBeVisual: true});
    const names = ["document", "Element", "Node", "Document", "DOMParser", "CustomEvent", "CSS", "localStorage"];
    globalThis.window = window;
    for (const name of names) { if (name in window) { globalThis[name] = window[name]; } }
    globalThis.CSS ||= {escape: (text) => text.replace(/([^\w-])/g, "\\$1")};
    return window;
}

export function elementOf(markup) {
    const box = document.createElement("div");
    box.innerHTML = markup;  // eslint-disable-line no-restricted-syntax -- the test's own markup
    return box.firstElementChild;
}
