// The line over which the monitor says that there is something new.
import {patience, socketTo} from "./dom.js";
import {refresh} from "./refresh.js";
import {cutOff, say} from "./status.js";
import {serverTimeIs} from "./times.js";

const PING_MS = 25000;

let socket = null;
let token = null;
let tries = 0;

function heard(message) {
    if (message.type !== "state") { return; }
    const missed = tries > 0;
    tries = 0;
    serverTimeIs(message.at);
    cutOff(message.store.up ? "" : message.store.why);
    say(message.store.up ? "live" : "cut", message.store.up ? "Live" : "Store down");
    const seen = message.token + "|" + message.broker.up;
    if ((token !== null && seen !== token) || missed) { refresh(); }
    token = seen;
}

function closed() {
    tries += 1;
    say("cut", "Cut off, trying again");
    if (tries > 1) { cutOff("Cut off from the monitor. What you see may be old; it catches up by itself."); }
    window.setTimeout(connect, patience(tries) * 1000);
}

function connect() {
    socket = socketTo("/trace/live");
    socket.addEventListener("message", (event) => heard(JSON.parse(event.data)));
    socket.addEventListener("close", closed);
}

export function startLive() {
    if (!document.getElementById("tr-live")) { return; }
    connect();
    // Keeps proxies from closing a quiet line.
    window.setInterval(() => {
        if (socket.readyState === WebSocket.OPEN) { socket.send("ping"); }
    }, PING_MS);
}
