// The state of a shell session: handles the monitor's messages and updates the view.

/**
 * @typedef {object} View The page of a session; see shell/view.js.
 */

export class Session {
    /**
     * @param {View} view
     * @param {string} me The user of this page.
     * @param {function(object): boolean} send Sends a message; false if disconnected.
     */
    constructor(view, me, send) {
        this.view = view;
        this.me = me;
        this.send = send;
        this.id = "";
        // Number of the running command, of any user.
        this.running = null;
        // The latest command of this page, and of another user, each with its echo in the transcript.
        this.mine = null;
        this.theirs = null;
        this.asked = 0;
        this.refused = "";
        // Number of transcript lines on this page.
        this.seen = 0;
        // Messages to send when the session is open.
        this.waiting = [];
        // All users of a session receive all messages, so numbers must be unique.
        this.next = 1 + Math.floor(Math.random() * 2 ** 48);
    }

    receive(message) {
        const handlers = {
            hello: this.hello, input: this.input, output: this.output, done: this.done,
            completions: this.completions, watchers: this.watchers, mode: this.mode, frame: this.frame,
            remark: this.remark, refused: this.refuse
        };
        if (Object.hasOwn(handlers, message.type)) { handlers[message.type].call(this, message); }
    }

    // --- messages to the monitor -----------------------------------------------------------------------

    // Returns whether it was sent; otherwise it is sent when the session is open.
    sendOrWait(message) {
        const sent = Boolean(this.id) && this.send(message);
        if (!sent) { this.waiting.push(message); }
        return sent;
    }

    run(code) {
        const id = this.next++;
        const sent = this.sendOrWait({type: "run", id, code});
        const remark = code.trim().startsWith("#");
        this.mine = {id, code, echo: remark ? null : this.view.add("input", code)};
        return sent;
    }

    complete(code, cursor) {
        this.asked = this.next++;
        this.send({type: "complete", id: this.asked, code, cursor});
    }

    interrupt() {
        if (this.running === null) { return; }
        this.send({type: "interrupt"});
        this.view.add("event", "stopping…");
    }

    disconnected() { this.busy(null); }

    // --- messages from the monitor ----------------------------------------------------------------------

    busy(id) {
        this.running = id;
        this.view.showBusy(id !== null);
    }

    hello(message) {
        const again = this.id === message.session;
        if (this.id && !again) { this.view.add("event", "The previous session has ended. This is a new one."); }
        this.id = message.session;
        this.me = message.user;
        this.view.showMode(message.mode);
        this.watchers({names: message.watchers});
        this.view.showFrames(message.frames, message.frame);
        this.busy(message.running === undefined ? null : message.running);
        // After a reconnect only missed lines are added.
        for (const line of message.transcript) {
            if (!again || line.seq > this.seen) { this.addLine(line); }
        }
        this.seen = Math.max(this.seen, ...message.transcript.map((line) => line.seq));
        if (!again) { (message.notices || []).forEach((text) => this.view.add("event", text)); }
        this.view.say("Connected, " + message.mode);
        this.waiting.splice(0).forEach((waiting) => this.send(waiting));
    }

    addLine(line) {
        const named = line.kind === "remark" || (line.kind === "input" && line.user !== this.me);
        this.view.add(line.kind === "output" ? "stdout" : line.kind, line.text, named ? line.user : "");
    }

    isMine(id) { return this.mine !== null && this.mine.id === id; }

    input(message) {
        this.busy(message.id);
        this.seen += 1;
        if (this.isMine(message.id) && message.user === this.me) { return; }
        this.theirs = {id: message.id, echo: this.view.add("input", message.code, message.user)};
    }

    output(message) {
        this.seen += 1;
        const kind = message.stream || message.kind;
        this.view.add(kind === "notice" ? "event" : kind, message.text);
    }

    done(message) {
        if (this.running === message.id) { this.busy(null); }
        // Incomplete blocks of other users are not shown.
        if (this.theirs && this.theirs.id === message.id && message.more) { this.theirs.echo.remove(); }
        if (!this.isMine(message.id)) { return; }
        if (message.more) {
            // The block is incomplete: restore the input for the next line.
            this.view.restore(this.mine.code, this.mine.echo);
        } else if (message.took_s >= 1) {
            this.view.addDuration(message.took_s);
        }
        this.mine = null;
    }

    completions(message) { if (message.id === this.asked) { this.view.showCompletions(message.items, message.start); } }
    watchers(message) { this.view.showWatchers(message.names, message.names.filter((name) => name !== this.me)); }

    mode(message) {
        this.seen += 1;
        if (message.frame !== undefined) { this.view.markFrame(message.frame); }
        this.view.showMode(message.mode);
        this.view.add("event", message.why);
        this.view.say("The shell is now " + message.mode);
    }

    frame(message) {
        this.view.markFrame(message.index);
        this.view.say("Frame " + message.index);
        // The frame of a session is shared by all users.
        if (message.user !== this.me) { this.view.add("event", `${message.user} selected frame ${message.index}`); }
    }

    remark(message) {
        this.seen += 1;
        this.view.add("remark", message.text, message.user);
    }

    refuse(message) {
        this.refused = message.why;
        this.view.add("error", message.why);
        this.busy(null);
    }
}
