// The form of alert rules. Changes apply when saved; the server validates them.
import {freeName, invalidField} from "./alerting/rules.js";
import {post} from "./page/requests.js";
import {escapedLines} from "./page/text.js";

const card = document.getElementById("rules-card");
const save = document.getElementById("rules-save");
const list = document.getElementById("rules-list");
const add = document.getElementById("rules-add");
const errorBox = document.getElementById("rules-error");
let changed = false;

function touched() {
    changed = true;
    save.disabled = false;
    document.getElementById("rules-none").hidden = list.children.length > 0;
}

function entries() {
    return [...list.querySelectorAll("[data-rule]")].map((rule) => {
        const fields = [...rule.querySelectorAll("[data-key]")];
        return {rule: rule.dataset.rule,
            ...Object.fromEntries(fields.map((field) => [field.dataset.key, field.value.trim()]))};
    });
}

function point(rule, key) {
    if (!rule) { return; }
    rule.open = true;
    const field = rule.querySelector(`[data-key="${key}"]`);
    if (!field) { return; }
    field.setAttribute("aria-invalid", "true");
    field.focus();
}

function showError(text) {
    errorBox.hidden = !text;
    errorBox.textContent = escapedLines(text);
    for (const field of list.querySelectorAll("[aria-invalid]")) { field.removeAttribute("aria-invalid"); }
    const found = invalidField(text);
    if (found) { point(list.children[found.rule], found.key); }
}

function removeRule(event) {
    if (!event.target.closest(".tr-rule-remove")) { return; }
    event.target.closest("[data-rule]").remove();
    touched();
    add.focus();
}

function addRule() {
    const template = card.querySelector(`template[data-kind="${add.value}"]`);
    add.value = "";
    if (!template) { return; }
    const rule = template.content.firstElementChild.cloneNode(true);
    const name = rule.querySelector('[data-key="name"]');
    name.value = freeName(name.value, entries().map((entry) => entry.name));
    rule.querySelector(".tr-rule-name").textContent = name.value;
    list.append(rule);
    touched();
    name.focus();
}

async function saveRules() {
    save.disabled = true;
    save.setAttribute("aria-busy", "true");
    save.textContent = "Saving…";
    try {
        await post(card.dataset.address, JSON.stringify({rules: entries()}));
        changed = false;
        showError("");
        window.location.reload();
    } catch (error) {
        save.disabled = false;
        showError(error.message);
    } finally {
        save.removeAttribute("aria-busy");
        save.textContent = "Save rules";
    }
}

// Users who may not change rules have no save button.
if (save) {
    list.addEventListener("input", touched);
    list.addEventListener("click", removeRule);
    add.addEventListener("change", addRule);
    save.addEventListener("click", saveRules);
    window.addEventListener("beforeunload", (event) => { if (changed) { event.preventDefault(); } });
}
