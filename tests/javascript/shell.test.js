import assert from "node:assert/strict";
import {beforeEach, describe, test} from "node:test";
import {History} from "../../flower_plugin/static/shell/history.js";
import {coloured, complete, continues, indentAfter, withoutEscapes} from "../../flower_plugin/static/shell/python.js";
import {Session} from "../../flower_plugin/static/shell/session.js";

// Everything that a session shows, in order.
class RecordedView {
    constructor() { this.shown = []; }

    add(kind, text, who) {
        const echo = {removed: false, remove() { this.removed = true; }};
        this.shown.push(["add", kind, text, who || ""]);
        return echo;
    }
}
for (const name of ["addDuration", "say", "showMode", "showWatchers", "showFrames", "markFrame", "showBusy", "restore",
    "showCompletions"]) {
    RecordedView.prototype[name] = function (...values) { this.shown.push([name, ...values]); };
}

const HELLO = {
    type: "hello", session: "s1", user: "ada", mode: "live", watchers: ["ada", "bob"], frames: [], frame: 0,
    transcript: [{seq: 1, kind: "input", text: "1", user: "bob"}, {seq: 2, kind: "output", text: "1\n"}],
    notices: ["Others see this."]
};

describe("a session", () => {
    let view, sent, session, open;

    beforeEach(() => {
        view = new RecordedView();
        sent = [];
        open = true;
        session = new Session(view, "ada", (message) => {
            if (open) { sent.push(message); }
            return open;
        });
    });

    const added = () => view.shown.filter(([what]) => what === "add").map(([, ...rest]) => rest);
    const last = (name) => view.shown.filter(([what]) => what === name).pop()?.slice(1);

    test("shows the transcript so far, with the names of others", () => {
        session.receive(HELLO);
        assert.deepEqual(added(), [["input", "1", "bob"], ["stdout", "1\n", ""], ["event", "Others see this.", ""]]);
        assert.deepEqual(last("showWatchers"), [["ada", "bob"], ["bob"]]);
        assert.deepEqual(last("showBusy"), [false]);
    });

    test("adds only what was missed after a cut", () => {
        session.receive(HELLO);
        view.shown = [];
        session.receive({...HELLO, transcript: [...HELLO.transcript, {seq: 3, kind: "output", text: "more"}]});
        assert.deepEqual(added(), [["stdout", "more", ""]]);
    });

    test("says that it is a new one where the one before has ended", () => {
        session.receive(HELLO);
        session.receive({...HELLO, session: "s2", transcript: [], notices: []});
        assert.deepEqual(added().pop(), ["event", "The previous session has ended. This is a new one.", ""]);
    });

    test("sends what was typed while it opened, in order", () => {
        assert.equal(session.run("a"), false);
        session.run("b");
        assert.deepEqual(sent, []);
        session.receive(HELLO);
        assert.deepEqual(sent.map((message) => message.code), ["a", "b"]);
    });

    test("keeps what is typed while the line is cut", () => {
        session.receive(HELLO);
        open = false;
        assert.equal(session.run("a"), false);
        open = true;
        session.receive(HELLO);
        assert.deepEqual(sent.map((message) => message.code), ["a"]);
    });

    test("echoes code of its own at once, and of others when it is told", () => {
        session.receive({...HELLO, transcript: []});
        view.shown = [];
        session.run("mine");
        session.receive({type: "input", id: sent[0].id, user: "ada", code: "mine"});
        session.receive({type: "input", id: 5, user: "bob", code: "theirs"});
        assert.deepEqual(added(), [["input", "mine", ""], ["input", "theirs", "bob"]]);
        assert.deepEqual(last("showBusy"), [true]);
    });

    test("echoes no remark, which comes back with its author", () => {
        session.receive({...HELLO, transcript: [], notices: []});
        session.run("# look here");
        session.receive({type: "remark", user: "ada", text: "look here"});
        assert.deepEqual(added(), [["remark", "look here", "ada"]]);
    });

    test("takes a block back that is not complete", () => {
        session.receive(HELLO);
        session.run("for x in y:");
        const {echo} = session.mine;
        session.receive({type: "done", id: sent[0].id, more: true});
        assert.deepEqual(last("restore"), ["for x in y:", echo]);
        assert.equal(session.mine, null);
    });

    test("removes somebody else's block that is not complete", () => {
        session.receive(HELLO);
        session.receive({type: "input", id: 5, user: "bob", code: "for x in y:"});
        const {echo} = session.theirs;
        session.receive({type: "done", id: 5, more: true});
        assert.equal(echo.removed, true);
    });

    test("says how long a run of a second or more took", () => {
        session.receive(HELLO);
        session.run("quick");
        session.receive({type: "done", id: sent[0].id, took_s: 0.9});
        assert.equal(last("addDuration"), undefined);
        session.run("slow");
        session.receive({type: "done", id: sent[1].id, took_s: 1.5});
        assert.deepEqual(last("addDuration"), [1.5]);
    });

    test("is busy until what runs is done, whoever began it", () => {
        session.receive({...HELLO, running: 5});
        assert.deepEqual(last("showBusy"), [true]);
        session.receive({type: "done", id: 4});
        assert.deepEqual(last("showBusy"), [true]);
        session.receive({type: "done", id: 5});
        assert.deepEqual(last("showBusy"), [false]);
    });

    test("interrupts only what runs", () => {
        session.interrupt();
        assert.deepEqual(sent, []);
        session.receive({...HELLO, running: 5});
        session.interrupt();
        assert.deepEqual(sent, [{type: "interrupt"}]);
    });

    test("shows completions of the latest question only", () => {
        session.receive(HELLO);
        session.complete("tra", 3);
        session.complete("trac", 4);
        session.receive({type: "completions", id: sent[0].id, items: ["trade"], start: 0});
        assert.equal(last("showCompletions"), undefined);
        session.receive({type: "completions", id: sent[1].id, items: ["trace"], start: 0});
        assert.deepEqual(last("showCompletions"), [["trace"], 0]);
    });

    test("names who chose another frame, except oneself", () => {
        session.receive({...HELLO, transcript: [], notices: []});
        session.receive({type: "frame", index: 1, user: "ada"});
        session.receive({type: "frame", index: 2, user: "bob"});
        assert.deepEqual(added(), [["event", "bob selected frame 2", ""]]);
        assert.deepEqual(last("markFrame"), [2]);
    });

    test("counts lines as the monitor does, so that a cut loses and repeats none", () => {
        session.receive(HELLO);
        session.receive({type: "output", stream: "stdout", text: "x"});
        session.receive({type: "mode", mode: "recreated", why: "the process ended"});
        assert.equal(session.seen, 4);
    });

    test("tells notices from output", () => {
        session.receive({type: "output", stream: "notice", text: "cut at 1 MiB"});
        assert.deepEqual(added(), [["event", "cut at 1 MiB", ""]]);
    });

    test("remembers why it was refused", () => {
        session.receive({type: "refused", why: "It is off."});
        assert.equal(session.refused, "It is off.");
        assert.deepEqual(added(), [["error", "It is off.", ""]]);
    });

    test("passes over messages that it does not know", () => {
        session.receive({type: "constructor"});
        session.receive({type: "later-version"});
        assert.deepEqual(view.shown, []);
    });
});

test("Python is coloured by kind, and loses no character", () => {
    const code = 'for x in "in": x = 0x1F  # for';
    const pieces = coloured(code);
    assert.equal(pieces.map(([text]) => text).join(""), code);
    assert.deepEqual(pieces.filter(([, kind]) => kind),
        [["for", "py-k"], ["in", "py-k"], ['"in"', "py-s1"], ["0x1F", "py-mi"], ["# for", "py-c1"]]);
});

test("a string that is not closed is coloured to the end of its line", () => {
    assert.deepEqual(coloured("x = 'for\nif"), [["x = ", ""], ["'for", "py-s1"], ["\n", ""], ["if", "py-k"]]);
    assert.deepEqual(coloured('"""a\nfor'), [['"""a\nfor', "py-s1"]]);
});

test("the next line is indented as the last, and further after a colon", () => {
    assert.equal(indentAfter("for x in y:"), "    ");
    assert.equal(indentAfter("for x in y:  # all\n    if x:\n"), "        ");
    assert.equal(indentAfter("    a = {1: 2}"), "    ");
});

test("a block goes on until an empty line or one that is not indented", () => {
    assert.equal(continues("x = 1"), false);
    assert.equal(continues("for x in y:\n    print(x)"), true);
    assert.equal(continues("for x in y:\n    print(x)\n"), false);
    assert.equal(complete("for x in y:\n    print(x)\n"), "for x in y:\n    print(x)\n");
    assert.equal(complete("x  "), "x");
});

test("terminal escapes are dropped from output", () => {
    assert.equal(withoutEscapes("\x1b[1;31mred\x1b[0m\r\nnext\rover\x1b]0;title\x07!"), "red\nnext\nover!");
});

function storage(entries = {}) {
    return {getItem: (key) => entries[key] ?? null, setItem: (key, value) => { entries[key] = value; }};
}

test("the history is walked both ways and gives the draft back", () => {
    const history = new History("h", () => storage({h: '["a","b"]'}));
    assert.equal(history.recall(-1, "draft"), "b");
    assert.equal(history.recall(-1, "b"), "a");
    assert.equal(history.recall(-1, "a"), "a");
    assert.equal(history.recall(1, "a"), "b");
    assert.equal(history.recall(1, "b"), "draft");
});

test("the history outlives the page and holds no line twice in a row", () => {
    const kept = {};
    const history = new History("h", () => storage(kept));
    for (const code of ["a", "a", "b"]) { history.remember(code); }
    assert.deepEqual(new History("h", () => storage(kept)).entries, ["a", "b"]);
});

test("a page without storage has a history of its own", () => {
    const history = new History("h", () => { throw new Error("denied"); });
    history.remember("a");
    assert.equal(history.recall(-1, ""), "a");
});
