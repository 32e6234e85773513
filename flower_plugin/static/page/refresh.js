// Refreshes the page: fetches it again and updates changed regions.
import {keepFilter} from "./filters.js";
import {morph} from "./morph.js";
import {setPaused, setStatus, showBanner} from "./status.js";
import {tick} from "./times.js";

const EVERY_MS = 2000;

// Each region as last sent by the server, without relative times, which always change.
const served = new Map();
let refreshing = false;
let again = false;
let last = 0;
let paused = false;

function asServed(region) {
    const copy = region.cloneNode(true);
    for (const time of copy.querySelectorAll("time.tr-time")) { time.textContent = ""; }
    return copy.outerHTML;
}

function selected() {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed ? selection : null;
}

function pause(wanted) {
    paused = wanted;
    setPaused(wanted);
}

function update(old, fresh) {
    const markup = asServed(fresh);
    if (served.get(old.id) === markup) { return; }
    if (selected()?.containsNode(old, true)) {
        pause(true);
        return;
    }
    const complete = morph(old, fresh, refresh);
    served.set(old.id, complete ? markup : "");
    keepFilter(old);
    tick(old);
    old.dispatchEvent(new CustomEvent("trace:fresh", {bubbles: true}));
}

async function fetchPage() {
    const headers = {"Accept": "text/html", "X-Trace-Refresh": "1"};
    const answer = await fetch(window.location.href, {credentials: "same-origin", headers});
    if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
        showBanner("Your login has expired. Reload the page to log in again.");
        return;
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const old of document.querySelectorAll("[data-live]")) {
        const region = fresh.getElementById(old.id);
        if (region) { update(old, region); }
    }
}

export async function refresh() {
    if (refreshing || document.hidden) { again = true; return; }
    const busy = document.querySelector("[data-live] [aria-busy]");
    const early = Math.max(0, last + EVERY_MS - Date.now());
    if (early || busy) { window.setTimeout(refresh, Math.max(early, 500)); return; }
    refreshing = true;
    last = Date.now();
    try {
        await fetchPage();
    } catch {
        setStatus("error", "Refresh failed");
    } finally {
        refreshing = false;
        onceMore();
    }
}

function onceMore() {
    if (document.hidden || !again) { return; }
    again = false;
    refresh();
}

// Must be called before any script changes the page.
export function startRefreshing() {
    for (const region of document.querySelectorAll("[data-live]")) { served.set(region.id, asServed(region)); }
    document.addEventListener("visibilitychange", onceMore);
    document.addEventListener("selectionchange", () => {
        if (!paused || selected()) { return; }
        pause(false);
        refresh();
    });
}
