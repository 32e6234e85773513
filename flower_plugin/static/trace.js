// What every page of ours does: relative times, live updates, buttons that post, sorting by link, copying.
(function () {
    "use strict";

    const base = document.body.dataset.base || "";
    const trace = window.celeryTrace = {base: base};

    // --- small things -----------------------------------------------------------------------------------

    trace.cookie = function (name) {
        const match = document.cookie.match("(?:^|;)\\s*" + name + "\\s*=\\s*([^;]+)");
        return match ? decodeURIComponent(match[1]) : "";
    };

    trace.data = function (id) {
        const element = document.getElementById(id);
        return element ? JSON.parse(element.textContent) : null;
    };

    // Characters that hide or turn others, as the pages spell them out.
    const UNSEEN = new RegExp(
        "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb]", "g");

    trace.visible = function (text) {
        return String(text).replace(UNSEEN, function (character) {
            const code = character.charCodeAt(0);
            return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
        });
    };

    trace.size = function (bytes) {
        if (bytes === null || bytes === undefined) { return "–"; }
        const size = Math.abs(bytes);
        if (size >= 1000 * 1048576) { return (bytes / 1073741824).toFixed(2) + " GiB"; }
        if (size >= 104858) { return (bytes / 1048576).toFixed(1) + " MiB"; }
        if (size >= 1000) { return (bytes / 1024).toFixed(1) + " KiB"; }
        return Math.round(bytes) + " B";
    };

    trace.toast = function (text, bad) {
        const place = document.getElementById("tr-toasts");
        const toast = document.createElement("div");
        toast.className = "tr-toast" + (bad ? " tr-toast-bad" : "");
        toast.setAttribute("role", bad ? "alert" : "status");
        toast.textContent = text;
        const close = document.createElement("button");
        close.type = "button";
        close.className = "btn-close";
        close.setAttribute("aria-label", "Close");
        close.addEventListener("click", function () { toast.remove(); });
        toast.appendChild(close);
        place.appendChild(toast);
        window.setTimeout(function () { toast.remove(); }, bad ? 12000 : 5000);
    };

    trace.copy = function (text) {
        if (navigator.clipboard && window.isSecureContext) { return navigator.clipboard.writeText(text); }
        const area = document.createElement("textarea");
        area.value = text;
        area.className = "visually-hidden";
        document.body.appendChild(area);
        area.select();
        document.execCommand("copy");
        area.remove();
        return Promise.resolve();
    };

    // --- times ------------------------------------------------------------------------------------------

    // The server's clock is the one that wrote the records; the reader's may be minutes off.
    let skew = 0;

    function words(seconds) {
        const ahead = seconds < -1;
        const size = Math.abs(seconds);
        if (size < 5) { return "now"; }
        const step = size < 90 ? [1, "s"] : size < 5400 ? [60, "min"] : size < 129600 ? [3600, "h"] : [86400, "days"];
        const text = Math.round(size / step[0]) + " " + step[1];
        return ahead ? "in " + text : text + " ago";
    }

    function tick(root) {
        const now = Date.now() / 1000 + skew;
        (root || document).querySelectorAll("time.tr-time").forEach(function (element) {
            const at = Number(element.dataset.at);
            const text = words(now - at);
            if (element.textContent !== text) { element.textContent = text; }
            if (!element.dataset.zoned) {
                element.dataset.zoned = "1";
                element.title = new Date(at * 1000).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "long"});
            }
        });
    }
    window.setInterval(tick, 5000);

    // --- links that keep the filter -----------------------------------------------------------------------

    function keepFilter(root) {
        root.querySelectorAll("a[data-argument]").forEach(function (link) {
            const address = new URL(window.location.href);
            if (link.dataset.value) {
                address.searchParams.set(link.dataset.argument, link.dataset.value);
            } else {
                address.searchParams.delete(link.dataset.argument);
            }
            if (link.dataset.argument !== "cursor") { address.searchParams.delete("cursor"); }
            link.href = address.pathname + address.search;
        });
    }

    document.querySelectorAll(".tr-filters").forEach(function (form) {
        form.addEventListener("submit", function () {
            // Empty fields would only lengthen the address.
            form.querySelectorAll("input, select").forEach(function (field) {
                if (!field.value || (field.name === "range" && field.value === "all" && !field.hasAttribute("data-submit"))) {
                    field.disabled = true;
                }
            });
        });
        form.querySelectorAll("[data-submit]").forEach(function (field) {
            field.addEventListener("change", function () { form.requestSubmit(); });
        });
    });
    window.addEventListener("pageshow", function () {
        document.querySelectorAll(".tr-filters [disabled]").forEach(function (field) { field.disabled = false; });
    });

    // --- buttons ------------------------------------------------------------------------------------------

    trace.post = async function (address, body, signal) {
        const answer = await fetch(address, {
            method: "POST", credentials: "same-origin", signal: signal,
            headers: {"Content-Type": "application/json", "X-XSRFToken": trace.cookie("_xsrf")},
            body: body || "{}"
        });
        let value = {};
        try { value = await answer.json(); } catch (error) { value = {}; }
        if (!answer.ok) {
            const why = value.error || {what: "The monitor refused this (" + answer.status + ").", why: "", next: ""};
            throw new Error([why.what, why.why, why.next].filter(Boolean).join(" "));
        }
        return value;
    };

    document.addEventListener("click", async function (event) {
        const button = event.target.closest("button");
        if (!button) { return; }
        if (button.dataset.copy) {
            await trace.copy(document.getElementById(button.dataset.copy).value);
            trace.toast(button.dataset.done);
        } else if (button.hasAttribute("data-copy-address")) {
            await trace.copy(window.location.origin + window.location.pathname);
            trace.toast(button.dataset.done);
        } else if (button.dataset.post) {
            if (button.controller) { button.controller.abort(); return; }
            if (button.dataset.ask && !window.confirm(button.dataset.ask)) { return; }
            const label = button.textContent;
            button.controller = new AbortController();
            button.setAttribute("aria-busy", "true");
            button.textContent = (button.dataset.busy || "…") + " (cancel)";
            try {
                const value = await trace.post(button.dataset.post, button.dataset.body, button.controller.signal);
                const failed = (value.deliveries || []).filter(function (delivery) { return !delivery.ok; });
                const mute = (value.workers || []).filter(function (worker) { return !worker.ok; });
                if (value.workers && !value.workers.length) {
                    trace.toast("No worker answered. It must run with celery-trace, and the same trace_shell_key.", true);
                } else if (mute.length) {
                    trace.toast(mute[0].worker + ": " + mute[0].why, true);
                } else if (failed.length) {
                    trace.toast("Not delivered: " + failed[0].error, true);
                } else {
                    trace.toast(button.dataset.done + (value.task_id ? " Its id is " + value.task_id + "." : ""));
                }
                if (button.dataset.lasts && !(value.workers && !value.workers.length)) {
                    tracing(button.dataset.task, Number(button.dataset.lasts));
                }
                if (button.dataset.then) { window.location.assign(button.dataset.then); }
                refresh();
            } catch (error) {
                trace.toast(error.name === "AbortError" ? "Cancelled." : error.message, error.name !== "AbortError");
            } finally {
                button.controller = null;
                button.removeAttribute("aria-busy");
                button.textContent = label;
            }
        }
    });

    // --- a task that is measured for a while: how long still, and an end before its time -----------------------

    const panel = document.getElementById("tr-tracing");

    function tracing(name, seconds) {
        try { window.sessionStorage.setItem("trace:" + name, JSON.stringify([Date.now(), seconds])); } catch (error) { /* none here */ }
        showTracing();
    }

    function showTracing() {
        if (!panel) { return; }
        let held = null;
        try { held = JSON.parse(window.sessionStorage.getItem("trace:" + panel.dataset.task) || "null"); } catch (error) { held = null; }
        const left = held ? held[1] - (Date.now() - held[0]) / 1000 : 0;
        const before = panel.hidden;
        panel.hidden = left <= 0;
        if (left <= 0) {
            if (held) { window.sessionStorage.removeItem("trace:" + panel.dataset.task); }
            if (!before) { refresh(); }
            return;
        }
        const bar = document.getElementById("tr-tracing-bar");
        bar.max = held[1];
        bar.value = held[1] - left;
        document.getElementById("tr-tracing-words").textContent = "Each run is measured, " + Math.floor(left / 60) + ":" + String(Math.floor(left % 60)).padStart(2, "0") + " left";
    }

    if (panel) {
        showTracing();
        window.setInterval(showTracing, 1000);
        document.getElementById("tr-tracing-stop").addEventListener("click", async function () {
            try {
                await trace.post(panel.dataset.address, JSON.stringify({name: panel.dataset.task, seconds: 0}));
                window.sessionStorage.removeItem("trace:" + panel.dataset.task);
                trace.toast("Stopped: runs are measured as usual again.");
                showTracing();
            } catch (error) {
                trace.toast(error.message, true);
            }
        });
    }

    // --- live -------------------------------------------------------------------------------------------

    const dot = document.getElementById("tr-live-dot");
    const text = document.getElementById("tr-live-text");
    const banner = document.getElementById("tr-cut-off");
    let socket = null;
    let token = null;
    let tries = 0;
    let refreshing = false;
    let again = false;
    let lastRefresh = 0;

    // Whether something newer waits for the reader to let go of the text that they have selected.
    let waits = false;
    let said = ["", "Connecting…"];

    function say(state, words) {
        said = [state, words];
        if (!text) { return; }
        text.textContent = state === "live" && waits ? "Waits while text is selected" : words;
        dot.className = "status-dot" + (state === "live" ? " status-dot-live" : state === "cut" ? " status-dot-error" : "");
    }

    function cutOff(words) {
        if (!banner) { return; }
        banner.hidden = !words;
        banner.textContent = words || "";
    }

    // A plot that somebody points at, or has reached by keyboard, stays as it is until they leave it.
    function inUse(card) { return card.matches(":hover") || card.querySelector(":focus-visible") !== null; }

    function plotCard(root, source) {
        const place = root.querySelector('[data-source="' + source + '"]');
        return place && place.closest(".tr-card");
    }

    // The cards of plots in use, each with the one that is to take its place.
    function plotsInUse(old, fresh) {
        const found = [];
        old.querySelectorAll("[data-source]").forEach(function (place) {
            const card = place.closest(".tr-card");
            if (card && inUse(card)) { found.push([card, plotCard(fresh, place.dataset.source)]); }
        });
        return found;
    }

    function catchUpAfter(card) {
        if (card.dataset.waits) { return; }
        card.dataset.waits = "1";
        function left() { window.setTimeout(function () { if (card.isConnected && !inUse(card)) { refresh(); } }); }
        card.addEventListener("mouseleave", left);
        card.addEventListener("focusout", left);
    }

    // Exchanges all that is around some elements, which never leave the page: one that did would lose its pointer.
    function exchangeAround(old, fresh, kept) {
        const stays = new Map();
        kept.forEach(function (pair) {
            let mine = pair[0];
            let its = pair[1];
            while (mine.parentNode !== old) { mine = mine.parentNode; }
            while (its.parentNode !== fresh) { its = its.parentNode; }
            stays.set(its, mine);
        });
        const staying = Array.from(stays.values());
        Array.from(old.childNodes).forEach(function (node) { if (!staying.includes(node)) { node.remove(); } });
        let next = old.firstChild;
        Array.from(fresh.childNodes).forEach(function (node) {
            const mine = stays.get(node);
            if (!mine) { old.insertBefore(node, next); return; }
            next = mine.nextSibling;
            const inside = kept.filter(function (pair) { return pair[0] !== mine && mine.contains(pair[0]); });
            if (inside.length) { exchangeAround(mine, node, inside); }
        });
    }

    // A region's markup without what this script does to it: words of times, and addresses that keep the filter.
    function plain(root) {
        const copy = root.cloneNode(true);
        copy.querySelectorAll("time.tr-time").forEach(function (element) {
            element.textContent = "";
            element.removeAttribute("title");
            element.removeAttribute("data-zoned");
        });
        copy.querySelectorAll("a[data-argument]").forEach(function (link) { link.removeAttribute("href"); });
        return copy.innerHTML;
    }

    function selected() {
        const selection = document.getSelection();
        return selection && !selection.isCollapsed ? selection : null;
    }

    document.addEventListener("selectionchange", function () {
        if (!waits || selected()) { return; }
        waits = false;
        say.apply(null, said);
        refresh();
    });

    // What a person has opened, typed, scrolled or selected inside a region survives its exchange.
    function exchange(old, fresh) {
        if (plain(old) === plain(fresh)) { return; }
        if (selected() && selected().containsNode(old, true)) {
            waits = true;
            say.apply(null, said);
            return;
        }
        const kept = plotsInUse(old, fresh);
        kept.forEach(function (pair) { catchUpAfter(pair[0]); });
        if (kept.some(function (pair) { return !pair[1]; })) { return; }  // the plot is gone; so it is once they leave
        const open = Array.from(old.querySelectorAll("details")).map(function (element) { return element.open; });
        const scrolled = Array.from(old.querySelectorAll(".tr-scroll, .tr-source, .tr-console-log")).map(function (element) {
            return [element.scrollLeft, element.scrollTop];
        });
        const pressed = Array.from(old.querySelectorAll("[data-series]")).map(function (element) {
            return element.getAttribute("aria-pressed");
        });
        const active = document.activeElement;
        const focusable = "a, button, input, select, summary, [tabindex]";
        const index = old.contains(active) ? Array.from(old.querySelectorAll(focusable)).indexOf(active) : -1;
        exchangeAround(old, fresh, kept);
        const details = old.querySelectorAll("details");
        if (details.length === open.length) { details.forEach(function (element, at) { element.open = open[at]; }); }
        old.querySelectorAll(".tr-scroll, .tr-source, .tr-console-log").forEach(function (element, at) {
            if (scrolled[at]) { element.scrollLeft = scrolled[at][0]; element.scrollTop = scrolled[at][1]; }
        });
        old.querySelectorAll("[data-series]").forEach(function (element, at) {
            if (pressed[at]) { element.setAttribute("aria-pressed", pressed[at]); }
        });
        if (index >= 0 && !old.contains(document.activeElement)) {
            const again = old.querySelectorAll(focusable)[index];
            if (again) { again.focus({preventScroll: true}); }
        }
        keepFilter(old);
        tick(old);
        old.dispatchEvent(new CustomEvent("trace:fresh", {
            bubbles: true, detail: {kept: kept.map(function (pair) { return pair[0]; })}
        }));
    }

    async function refresh() {
        if (refreshing || document.hidden) { again = true; return; }
        const busy = document.querySelector("[data-live] [aria-busy]");
        const wait = Math.max(0, lastRefresh + 2000 - Date.now());
        if (wait || busy) { window.setTimeout(refresh, Math.max(wait, 500)); return; }
        refreshing = true;
        lastRefresh = Date.now();
        try {
            const answer = await fetch(window.location.href, {credentials: "same-origin", headers: {"Accept": "text/html"}});
            if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
                cutOff("Your login has ended. Reload the page to log in again.");
                return;
            }
            const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
            document.querySelectorAll("[data-live]").forEach(function (old) {
                const region = fresh.getElementById(old.id);
                if (region) { exchange(old, document.importNode(region, true)); }
            });
        } catch (error) {
            say("cut", "Could not refresh");
        } finally {
            refreshing = false;
            if (again && !document.hidden) { again = false; refresh(); }
        }
    }
    trace.refresh = refresh;

    document.addEventListener("visibilitychange", function () {
        if (!document.hidden && again) { again = false; refresh(); }
    });

    function connect() {
        if (!document.querySelector("[data-live]:not(:empty), #tr-live")) { return; }
        const scheme = window.location.protocol === "https:" ? "wss://" : "ws://";
        socket = new WebSocket(scheme + window.location.host + base + "/trace/live");
        socket.addEventListener("message", function (event) {
            const message = JSON.parse(event.data);
            if (message.type !== "state") { return; }
            const missed = tries > 0;
            tries = 0;
            skew = message.at - Date.now() / 1000;
            cutOff(message.store.up ? "" : message.store.why);
            say(message.store.up ? "live" : "cut", message.store.up ? "Live" : "Store down");
            const seen = message.token + "|" + message.broker.up;
            if ((token !== null && seen !== token) || missed) { refresh(); }
            token = seen;
        });
        socket.addEventListener("close", function () {
            tries += 1;
            const wait = Math.min(15, Math.pow(1.6, tries));
            say("cut", "Cut off, trying again");
            if (tries > 1) { cutOff("Cut off from the monitor. What you see may be old; it catches up by itself."); }
            window.setTimeout(connect, wait * 1000);
        });
    }

    // Keeps proxies from closing a quiet line.
    window.setInterval(function () {
        if (socket && socket.readyState === WebSocket.OPEN) { socket.send("ping"); }
    }, 25000);

    keepFilter(document);
    tick();
    if (document.getElementById("tr-live")) { connect(); }
}());
