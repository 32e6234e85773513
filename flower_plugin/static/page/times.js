// Updates relative times; the exact time in the browser's time zone is on hover.
import {ago, exact} from "./text.js";

// Records have the server's time; the browser's clock may be minutes off.
let skew = 0;

export function serverTimeIs(at) { skew = at - Date.now() / 1000; }

export function tick(root = document) {
    const now = Date.now() / 1000 + skew;
    for (const time of root.querySelectorAll("time.tr-time")) {
        const at = Number(time.dataset.at);
        const relative = ago(now - at);
        const text = "left" in time.dataset ? relative.replace(/^in /, "") : relative;
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
