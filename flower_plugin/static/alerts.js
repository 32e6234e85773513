// The alert rules as a form: nothing holds before it is saved, and the server says what it does not take.
(function () {
    "use strict";

    const trace = window.celeryTrace;
    const card = document.getElementById("rules-card");
    const save = document.getElementById("rules-save");
    if (!card || !save) { return; }
    const list = document.getElementById("rules-list");
    const none = document.getElementById("rules-none");
    const complaint = document.getElementById("rules-complaint");
    const add = document.getElementById("rules-add");
    let changed = false;

    function touched() {
        changed = true;
        save.disabled = false;
        none.hidden = list.children.length > 0;
    }

    function entries() {
        return Array.from(list.querySelectorAll("[data-rule]")).map(function (rule) {
            const entry = {rule: rule.dataset.rule};
            rule.querySelectorAll("[data-key]").forEach(function (field) {
                entry[field.dataset.key] = field.value.trim();
            });
            return entry;
        });
    }

    function freeName(wanted) {
        const taken = entries().map(function (entry) { return entry.name; });
        let name = wanted;
        for (let number = 2; taken.includes(name); number += 1) { name = wanted + "-" + number; }
        return name;
    }

    function refuse(text) {
        complaint.hidden = !text;
        complaint.textContent = text ? trace.visible(text) : "";
        const found = text && text.match(/trace_alert_rules\[(\d+)\]: '?(\w+)?/);
        list.querySelectorAll("[aria-invalid]").forEach(function (field) { field.removeAttribute("aria-invalid"); });
        if (!found) { return; }
        const rule = list.children[Number(found[1]) - 1];
        if (!rule) { return; }
        rule.open = true;
        const field = rule.querySelector('[data-key="' + (found[2] || "above") + '"]');
        if (field) {
            field.setAttribute("aria-invalid", "true");
            field.focus();
        }
    }

    list.addEventListener("input", touched);
    list.addEventListener("click", function (event) {
        if (!event.target.closest(".tr-rule-remove")) { return; }
        event.target.closest("[data-rule]").remove();
        touched();
        add.focus();
    });
    add.addEventListener("change", function () {
        const template = card.querySelector('template[data-kind="' + add.value + '"]');
        add.value = "";
        if (!template) { return; }
        const rule = template.content.firstElementChild.cloneNode(true);
        const name = rule.querySelector('[data-key="name"]');
        name.value = freeName(name.value);
        rule.querySelector(".tr-rule-name").textContent = name.value;
        list.appendChild(rule);
        touched();
        name.focus();
    });
    save.addEventListener("click", async function () {
        save.disabled = true;
        save.setAttribute("aria-busy", "true");
        save.textContent = "Saving…";
        try {
            await trace.post(card.dataset.address, JSON.stringify({rules: entries()}));
            changed = false;
            refuse("");
            window.location.reload();
        } catch (error) {
            save.disabled = false;
            refuse(error.message);
        } finally {
            save.removeAttribute("aria-busy");
            save.textContent = "Save rules";
        }
    });
    window.addEventListener("beforeunload", function (event) { if (changed) { event.preventDefault(); } });
}());
