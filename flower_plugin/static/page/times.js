// Relative times, kept current, with the exact one in the reader's zone on hover.
import {ago, exact} from "./text.js";

// The server's clock is the one that wrote the records; the reader's may be minutes off.
let skew = 0;

export function serverTimeIs(at) { skew = at - Date.now() / 1000; }

export function tick(root = document) {
    const now = Date.now() / 1000 + skew;
    for (const time of root.querySelectorAll("time.tr-time")) {
        const at = Number(time.dataset.at);
        const text = ago(now - at);
        if (time.textContent !== text) { time.textContent = text; }
        if (!time.dataset.zoned) {
            time.dataset.zoned = "1";
            time.title = exact(at, {dateStyle: "medium", timeStyle: "long"});
        }
    }
}

export function startTimes() {
    tick();
    window.setInterval(() => tick(), 5000);
}
