// Adds our data about the task or worker to Flower's own pages.
import {element} from "./page/dom.js";
import {percent, size} from "./page/text.js";

function link(text, address) {
    const made = element("a", "tr-strong", text);
    made.href = address;
    return made;
}

function row(label, ...parts) {
    const value = element("dd");
    value.append(...parts);
    const line = element("div", "detail-row");
    line.append(element("dt", "", label), value);
    return line;
}

async function get(address) {
    const answer = await fetch(address, {credentials: "same-origin", headers: {"Accept": "application/json"}});
    if (!answer.ok) { throw new Error(String(answer.status)); }
    return answer.json();
}

function failureRow(base, failure) {
    const what = failure.exception ? failure.exception.type : failure.outcome;
    const address = `${base}/trace/failures/${encodeURIComponent(failure.id)}`;
    return row(failure.retries ? `Failure, attempt ${failure.retries + 1}` : "Failure",
        link(what + ": frames, locals and shell", address));
}

function memoryRows(run) {
    const parts = [];
    if (run.kept_bytes !== null && run.kept_bytes !== undefined) { parts.push(size(run.kept_bytes) + " held at end"); }
    if (run.memory && run.memory.rss_bytes) { parts.push(size(run.memory.rss_bytes) + " resident"); }
    return parts.length ? [row("Memory of this run", parts.join(", "))] : [];
}

function leakRow(base, leak) {
    const text = `${size(leak.kept_bytes_per_run)} per run (${leak.verdict.replace(/_/g, " ")})`;
    return row(leak.verdict === "leaking" ? "Leak" : "Possible leak",
        link(text, `${base}/trace/leaks/${encodeURIComponent(leak.id)}`));
}

async function taskRows({base, task, name}) {
    const [id, of] = [encodeURIComponent(task), encodeURIComponent(name)];
    const [{failures}, {runs}, {leaks}] = await Promise.all([
        get(`${base}/api/trace/failures?limit=5&task_id=${id}`),
        get(`${base}/api/trace/runs?limit=5&task_id=${id}`),
        name ? get(`${base}/api/trace/leaks?limit=3&kind=task&name=${of}`) : {leaks: []}
    ]);
    return [
        ...failures.map((failure) => failureRow(base, failure)),
        ...runs.flatMap(memoryRows),
        ...leaks.map((leak) => leakRow(base, leak)),
        row("Workflow", link("Timeline", `${base}/trace/workflow/${id}`)),
        ...(name ? [row("All runs", link(name, `${base}/trace/runs/task/${of}`))] : [])
    ];
}

async function workerRows({base, worker}) {
    const found = await get(`${base}/api/trace/workers?limit=1000`);
    const of = encodeURIComponent(worker);
    return found.workers.filter((one) => one.name === worker).flatMap((one) => {
        const processes = one.rss_processes + (one.rss_processes === 1 ? " process" : " processes");
        return [
            row("Memory",
                link(`${size(one.rss_bytes)} resident in ${processes}`, `${base}/trace/workers?worker=${of}`)),
            row("Overhead", percent(one.overhead_ratio) + " of process time"),
            row("Failures", link("Failures of this worker", `${base}/trace/failures/all?worker=${of}`))
        ];
    });
}

// Our data is optional: if the store is down, Flower's page must look as usual.
async function show(id, rowsOf) {
    const place = document.getElementById(id);
    if (!place) { return; }
    const rows = await rowsOf(place.dataset).catch(() => []);
    if (!rows.length) { return; }
    const list = element("dl", "detail-list");
    list.append(...rows);
    place.replaceChildren(list);
    place.hidden = false;
}

show("trace-on-task", taskRows);
show("trace-on-worker", workerRows);
