// The shell beside a failure: one WebSocket, a transcript, an input that completes and remembers.
(function () {
    "use strict";

    const trace = window.celeryTrace;
    const root = document.getElementById("tr-console");
    if (!root) { return; }
    const log = document.getElementById("console-log");
    const input = document.getElementById("console-input");
    const prompt = document.getElementById("console-prompt");
    const menu = document.getElementById("console-menu");
    const frames = document.getElementById("console-frames");
    const mode = document.getElementById("console-mode");
    const watchers = document.getElementById("console-watchers");
    const stop = document.getElementById("console-stop");
    const state = document.getElementById("console-state");
    const HISTORY = "celery-trace-history:" + root.dataset.user;
    const MOST_HISTORY = 300;
    const MOST_LINES = 2000;

    let socket = null;
    let tries = 0;
    let refused = "";
    let session = "";
    let me = root.dataset.user;
    // Several people share a session and hear each other's answers, so numbers must not be shared.
    let next = 1 + Math.floor(Math.random() * 2 ** 48);
    let running = null;
    let mine = null;
    let theirs = null;
    let asked = 0;
    let history = [];
    let place = null;
    let draft = "";
    let items = [];
    let chosen = -1;
    let start = 0;
    let seen = 0;
    let waiting = [];
    let leaving = false;

    try { history = JSON.parse(window.localStorage.getItem(HISTORY) || "[]"); } catch (error) { history = []; }

    // --- transcript -------------------------------------------------------------------------------------

    // Terminal colours and cursor tricks are dropped; what is left is shown as text, never as markup.
    const ESCAPES = new RegExp("\\u001b(?:\\[[0-9;?]*[ -/]*[@-~]|\\][^\\u0007\\u001b]*(?:\\u0007|\\u001b\\\\)?|[@-_])", "g");
    function clean(text) { return trace.visible(String(text).replace(ESCAPES, "").replace(/\r\n?/g, "\n")); }

    const WORDS = new Set(("False None True and as assert async await break class continue def del elif else except finally for from " +
        "global if import in is lambda nonlocal not or pass raise return try while with yield").split(" "));
    const TOKENS = /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|\b(\d[\w.]*)|([A-Za-z_]\w*)/g;

    function coloured(code, into) {
        let at = 0;
        code.replace(TOKENS, function (match, comment, string, number, word, offset) {
            const kind = comment ? "py-c1" : string ? "py-s1" : number ? "py-mi" : WORDS.has(word) ? "py-k" : "";
            if (!kind) { return match; }
            into.append(code.slice(at, offset));
            const span = document.createElement("span");
            span.className = kind;
            span.textContent = match;
            into.append(span);
            at = offset + match.length;
            return match;
        });
        into.append(code.slice(at));
    }

    function atEnd() { return log.scrollHeight - log.scrollTop - log.clientHeight < 40; }

    function add(kind, text, who) {
        const stay = atEnd();
        const last = log.lastElementChild;
        if (kind === "stdout" && last && last.dataset.kind === "stdout" && last.textContent.length < 100000) {
            last.querySelector("pre").append(clean(text));
        } else {
            const line = document.createElement("div");
            line.className = "tr-log tr-log-" + kind;
            line.dataset.kind = kind;
            if (who) {
                const name = document.createElement("span");
                name.className = "tr-log-who";
                name.textContent = trace.visible(who);
                line.appendChild(name);
            }
            const pre = document.createElement("pre");
            if (kind === "input") {
                clean(text).replace(/\n$/, "").split("\n").forEach(function (part, at) {
                    const mark = document.createElement("span");
                    mark.className = "tr-prompt";
                    mark.setAttribute("aria-hidden", "true");
                    mark.textContent = at ? "... " : ">>> ";
                    if (at) { pre.append("\n"); }
                    pre.append(mark);
                    coloured(part, pre);
                });
            } else {
                pre.textContent = clean(text);
            }
            line.appendChild(pre);
            log.appendChild(line);
            while (log.childElementCount > MOST_LINES) { log.firstElementChild.remove(); }
        }
        if (stay) { log.scrollTop = log.scrollHeight; }
    }

    function tell(text) { state.textContent = text; }

    // --- connection ---------------------------------------------------------------------------------------

    function send(message) {
        if (socket && socket.readyState === WebSocket.OPEN) { socket.send(JSON.stringify(message)); return true; }
        return false;
    }

    function showMode(word) {
        mode.textContent = word;
        mode.className = "tr-badge " + (word === "live" ? "tr-success" : word === "recreated" ? "tr-info" : "tr-muted");
        mode.title = word === "live" ? "You type into the process that failed" : word === "recreated" ? "From the capture, in a sandbox" : "";
    }

    function showWatchers(names) {
        const others = names.filter(function (name) { return name !== me; });
        watchers.textContent = others.length ? "with " + others.map(trace.visible).join(", ") : "";
        watchers.title = "Watching: " + names.map(trace.visible).join(", ");
    }

    function markFrame(index) {
        frames.value = String(index);
        document.querySelectorAll("[data-frame]").forEach(function (frame) {
            frame.classList.toggle("tr-in-shell", Number(frame.dataset.frame) === index);
        });
    }

    function busy(id) {
        running = id;
        stop.disabled = id === null;
        root.classList.toggle("tr-running", id !== null);
        root.setAttribute("aria-busy", id === null ? "false" : "true");
    }

    const heard = {
        hello: function (message) {
            const again = session === message.session;
            if (session && !again) { add("event", "The session before has ended; this is a new one."); }
            session = message.session;
            me = message.user;
            tries = 0;
            showMode(message.mode);
            showWatchers(message.watchers);
            frames.replaceChildren.apply(frames, message.frames.map(function (frame, index) {
                const option = document.createElement("option");
                option.value = String(index);
                option.textContent = trace.visible(index + "  " + frame.function + "  " + frame.file.split("/").pop() + ":" + frame.line);
                return option;
            }));
            frames.disabled = false;
            markFrame(message.frame);
            busy(message.running === undefined ? null : message.running);
            // After a cut only what was missed is added.
            message.transcript.filter(function (line) { return !again || line.seq > seen; }).forEach(function (line) {
                add(line.kind === "output" ? "stdout" : line.kind, line.text, line.kind === "remark" || (line.kind === "input" && line.user !== me) ? line.user : "");
            });
            message.transcript.forEach(function (line) { seen = Math.max(seen, line.seq); });
            if (!again) { (message.notices || []).forEach(function (text) { add("event", text); }); }
            tell("Connected, " + message.mode);
            // What was typed while the session opened.
            waiting.splice(0).forEach(send);
        },
        input: function (message) {
            busy(message.id);
            seen += 1;
            if (!(mine && mine.id === message.id && message.user === me)) {
                add("input", message.code, message.user);
                theirs = {id: message.id, echo: log.lastElementChild};
            }
        },
        output: function (message) { seen += 1; add(message.stream || (message.kind === "notice" ? "event" : message.kind), message.text); },
        done: function (message) {
            if (running === message.id) { busy(null); }
            // What somebody else began is shown when it is complete.
            if (theirs && theirs.id === message.id && message.more) { theirs.echo.remove(); }
            if (mine && mine.id === message.id) {
                if (message.more) {
                    // The block is not complete: it goes back into the input, for the next line.
                    const lines = log.querySelectorAll(".tr-log-input");
                    if (lines.length && mine.echo === lines[lines.length - 1]) { mine.echo.remove(); }
                    if (!input.value) { input.value = mine.code.replace(/\n*$/, "") + "\n" + indentAfter(mine.code); grow(); }
                } else if (message.took_s >= 1) {
                    add("event", "took " + message.took_s.toFixed(1) + " s");
                }
                mine = null;
            }
        },
        completions: function (message) { if (message.id === asked) { showMenu(message.items, message.start); } },
        watchers: function (message) { showWatchers(message.names); },
        mode: function (message) {
            seen += 1;
            if (message.frame !== undefined) { markFrame(message.frame); }
            showMode(message.mode);
            add("event", message.why);
            tell("The shell is now " + message.mode);
        },
        frame: function (message) {
            markFrame(message.index);
            tell("Frame " + message.index);
            // Somebody else's choice changes what the names mean here too.
            if (message.user !== me) { add("event", message.user + " chose frame " + message.index); }
        },
        remark: function (message) { seen += 1; add("remark", message.text, message.user); },
        refused: function (message) { refused = message.why; add("error", message.why); busy(null); }
    };

    function begin() { if (!socket) { connect(); } }

    function connect() {
        const scheme = window.location.protocol === "https:" ? "wss://" : "ws://";
        socket = new WebSocket(scheme + window.location.host + trace.base + "/trace/shell/" + encodeURIComponent(root.dataset.failure));
        if (!tries) { showMode("connecting"); }
        socket.addEventListener("message", function (event) {
            const message = JSON.parse(event.data);
            if (heard[message.type]) { heard[message.type](message); }
        });
        socket.addEventListener("close", function (event) {
            frames.disabled = true;
            busy(null);
            if (event.code === 4000) {
                input.disabled = true;
                showMode("refused");
                tell("The shell was refused: " + refused);
                return;
            }
            tries += 1;
            showMode("cut off, trying again");
            window.setTimeout(connect, Math.min(15, Math.pow(1.6, tries)) * 1000);
        });
    }

    window.setInterval(function () { send({type: "ping"}); }, 25000);

    // --- input ------------------------------------------------------------------------------------------

    function grow() {
        input.rows = Math.max(1, Math.min(14, input.value.split("\n").length));
        prompt.textContent = input.value.includes("\n") ? "..." : ">>>";
    }

    function indentAfter(code) {
        const lines = code.replace(/\s+$/, "").split("\n");
        const last = lines[lines.length - 1] || "";
        const indent = last.match(/^\s*/)[0];
        return /:\s*(#.*)?$/.test(last) ? indent + "    " : indent;
    }

    function remember(code) {
        if (history[history.length - 1] !== code) { history.push(code); }
        history = history.slice(-MOST_HISTORY);
        // Another page may be closed to storage; the history then lasts as long as this page.
        try { window.localStorage.setItem(HISTORY, JSON.stringify(history)); } catch (error) { return; }
    }

    function run() {
        let code = input.value;
        if (!code.trim()) { return; }
        const lines = code.split("\n");
        const block = lines.length > 1;
        // As in Python's own shell: inside a block Enter makes a line, and an empty line runs it.
        if (block && lines[lines.length - 1].trim() !== "" && /^\s/.test(lines[lines.length - 1])) {
            insert("\n" + indentAfter(code));
            return;
        }
        code = code.replace(/\s+$/, "") + (block ? "\n" : "");
        const id = next++;
        if (!session || !send({type: "run", id: id, code: code})) { waiting.push({type: "run", id: id, code: code}); begin(); }
        remember(code.replace(/\n$/, ""));
        mine = {id: id, code: code, echo: null};
        if (!code.trim().startsWith("#")) { add("input", code); mine.echo = log.lastElementChild; }
        log.scrollTop = log.scrollHeight;
        place = null;
        input.value = "";
        grow();
    }

    function insert(text) {
        const at = input.selectionStart;
        input.setRangeText(text, at, input.selectionEnd, "end");
        grow();
    }

    function recall(step) {
        if (!history.length) { return; }
        if (place === null) { draft = input.value; place = history.length; }
        place = Math.max(0, Math.min(history.length, place + step));
        input.value = place === history.length ? draft : history[place];
        if (place === history.length) { place = null; }
        grow();
        input.setSelectionRange(input.value.length, input.value.length);
    }

    function ask() {
        asked = next++;
        send({type: "complete", id: asked, code: input.value, cursor: input.selectionStart});
    }

    function hideMenu() {
        menu.hidden = true;
        items = [];
        chosen = -1;
        input.removeAttribute("aria-activedescendant");
        input.removeAttribute("aria-expanded");
    }

    function showMenu(found, from) {
        if (!found.length || document.activeElement !== input) { hideMenu(); if (!found.length) { tell("No completion"); } return; }
        start = from;
        if (found.length === 1) { items = found; chosen = 0; take(); return; }
        items = found.slice(0, 60);
        menu.replaceChildren.apply(menu, items.map(function (item, at) {
            const line = document.createElement("li");
            line.id = "completion-" + at;
            line.setAttribute("role", "option");
            line.textContent = trace.visible(item);
            line.addEventListener("mousedown", function (event) { event.preventDefault(); chosen = at; take(); });
            return line;
        }));
        menu.hidden = false;
        mark(0);
        tell(found.length + " completions");
    }

    function mark(at) {
        chosen = (at + items.length) % items.length;
        Array.from(menu.children).forEach(function (line, number) {
            line.setAttribute("aria-selected", number === chosen ? "true" : "false");
            if (number === chosen) { line.scrollIntoView({block: "nearest"}); }
        });
        input.setAttribute("aria-activedescendant", "completion-" + chosen);
    }

    function take() {
        const item = items[chosen];
        if (item !== undefined) { input.setRangeText(item, start, input.selectionStart, "end"); }
        hideMenu();
        grow();
        input.focus();
    }

    function interrupt() { if (running !== null) { send({type: "interrupt"}); add("event", "stopping…"); } }

    input.addEventListener("input", function () { hideMenu(); grow(); });
    input.addEventListener("blur", hideMenu);
    input.addEventListener("keydown", function (event) {
        // Tab belongs to the completion; after Escape it leads out of the field, as a keyboard needs.
        const left = leaving;
        leaving = event.key === "Escape";
        const single = !input.value.includes("\n");
        const before = input.value.slice(0, input.selectionStart);
        if (!menu.hidden && event.key === "ArrowDown") { mark(chosen + 1); }
        else if (!menu.hidden && event.key === "ArrowUp") { mark(chosen - 1); }
        else if (!menu.hidden && (event.key === "Enter" || event.key === "Tab")) { take(); }
        else if (event.key === "Escape" && !menu.hidden) { hideMenu(); }
        else if (event.key === "Enter" && event.shiftKey) { insert("\n" + indentAfter(before)); }
        else if (event.key === "Enter") { run(); }
        else if (event.key === " " && event.ctrlKey) { ask(); }
        // Tab completes after a word and leaves the field elsewhere.
        else if (event.key === "Tab" && !event.shiftKey && !left && /[\w.]$/.test(before)) { ask(); }
        else if (event.key === "ArrowUp" && (single || !before.includes("\n"))) { recall(-1); }
        else if (event.key === "ArrowDown" && (single || !input.value.slice(input.selectionStart).includes("\n"))) { recall(1); }
        else if (event.key === "c" && event.ctrlKey && input.selectionStart === input.selectionEnd) {
            if (running !== null) { interrupt(); } else { input.value = ""; place = null; grow(); }
        }
        else if (event.key === "l" && event.ctrlKey) { log.replaceChildren(); }
        else { return; }
        event.preventDefault();
    });
    log.addEventListener("keydown", function (event) {
        if (event.key === "c" && event.ctrlKey && !window.getSelection().toString()) { interrupt(); event.preventDefault(); }
    });
    stop.addEventListener("click", interrupt);
    // A phone's keyboard has no Tab, no arrows and no Ctrl.
    document.querySelectorAll("[data-key]").forEach(function (button) {
        button.addEventListener("mousedown", function (event) { event.preventDefault(); });
        button.addEventListener("click", function () {
            input.focus();
            if (button.dataset.key === "complete") { ask(); }
            else if (button.dataset.key === "earlier") { recall(-1); }
            else if (button.dataset.key === "later") { recall(1); }
            else { insert("\n" + indentAfter(input.value.slice(0, input.selectionStart))); }
        });
    });
    frames.addEventListener("change", function () { send({type: "frame", index: Number(frames.value)}); });
    document.addEventListener("click", function (event) {
        const button = event.target.closest("[data-choose]");
        if (!button) { return; }
        const wish = {type: "frame", index: Number(button.dataset.choose)};
        if (!session || !send(wish)) { waiting.push(wish); }
        input.focus();
    });
    document.getElementById("console-copy").addEventListener("click", function () {
        const text = Array.from(log.querySelectorAll("pre")).map(function (pre) { return pre.textContent; }).join("\n");
        trace.copy(text).then(function () { trace.toast("The transcript is copied."); });
    });

    // A page that is only read opens no session: the shell begins when somebody turns to it.
    input.addEventListener("focus", begin);
    mode.textContent = "ready";
    if (window.location.hash === "#shell") { input.focus(); }
}());
