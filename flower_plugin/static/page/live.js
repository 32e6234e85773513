// The WebSocket for updates.
import {backoff, socketTo} from "./dom.js";
import {refresh} from "./refresh.js";
import {setStatus, showBanner} from "./status.js";
import {serverTimeIs} from "./times.js";

const PING_MS = 25000;

let socket = null;
let token = null;
let tries = 0;

function receive(message) {
    if (message.type !== "state") { return; }
    const missed = tries > 0;
    tries = 0;
    serverTimeIs(message.at);
    showBanner(message.store.up ? "" : message.store.why);
    setStatus(message.store.up ? "live" : "error", message.store.up ? "Live" : "Store down");
    const seen = message.token + "|" + message.broker.up;
    if ((token !== null && seen !== token) || missed) { refresh(); }
    token = seen;
}

function closed() {
    tries += 1;
    setStatus("error", "Disconnected, reconnecting");
    if (tries > 1) { showBanner("Disconnected from the monitor. This page updates when reconnected."); }
    window.setTimeout(connect, backoff(tries) * 1000);
}

function connect() {
    socket = socketTo("/trace/live");
    socket.addEventListener("message", (event) => receive(JSON.parse(event.data)));
    socket.addEventListener("close", closed);
}

export function startLive() {
    if (!document.getElementById("tr-live")) { return; }
    connect();
    // Keeps proxies from closing an idle connection.
    window.setInterval(() => {
        if (socket.readyState === WebSocket.OPEN) { socket.send("ping"); }
    }, PING_MS);
}
