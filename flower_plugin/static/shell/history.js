// The command history, shared by pages of the same browser.

const MOST = 300;

export class History {
    constructor(key, storage) {
        this.key = key;
        this.storage = storage;
        this.entries = [];
        this.place = null;
        this.draft = "";
        // Storage may be disabled; the history then lasts as long as the page.
        try { this.entries = JSON.parse(storage().getItem(key) || "[]"); } catch { this.entries = []; }
    }

    remember(code) {
        this.place = null;
        if (this.entries[this.entries.length - 1] !== code) { this.entries.push(code); }
        this.entries = this.entries.slice(-MOST);
        try { this.storage().setItem(this.key, JSON.stringify(this.entries)); } catch { return; }
    }

    leave() { this.place = null; }

    // The entry so many steps away; the current input follows the latest entry.
    recall(step, now) {
        if (!this.entries.length) { return null; }
        if (this.place === null) {
            this.draft = now;
            this.place = this.entries.length;
        }
        this.place = Math.max(0, Math.min(this.entries.length, this.place + step));
        if (this.place < this.entries.length) { return this.entries[this.place]; }
        this.place = null;
        return this.draft;
    }
}
