// On Flower's own pages: what we know of the task or the worker that the page shows.
(function () {
    "use strict";

    function element(tag, name, text) {
        const made = document.createElement(tag);
        if (name) { made.className = name; }
        if (text !== undefined) { made.textContent = text; }
        return made;
    }

    function size(bytes) {
        if (Math.abs(bytes) >= 104858) { return (bytes / 1048576).toFixed(1) + " MiB"; }
        return (bytes / 1024).toFixed(1) + " KiB";
    }

    function link(text, address) {
        const made = element("a", "tr-strong", text);
        made.href = address;
        return made;
    }

    function row(list, label, parts) {
        const line = element("div", "detail-row");
        line.appendChild(element("dt", "", label));
        const value = element("dd");
        parts.forEach(function (part) { value.append(part); });
        line.appendChild(value);
        list.appendChild(line);
    }

    async function get(address) {
        const answer = await fetch(address, {credentials: "same-origin", headers: {"Accept": "application/json"}});
        if (!answer.ok) { throw new Error(String(answer.status)); }
        return answer.json();
    }

    function show(place, list) {
        if (!list.childElementCount) { return; }
        place.replaceChildren(list);
        place.hidden = false;
    }

    async function task(place) {
        const base = place.dataset.base;
        const name = place.dataset.name;
        const id = encodeURIComponent(place.dataset.task);
        const found = await Promise.all([
            get(base + "/api/trace/failures?limit=5&task_id=" + id),
            get(base + "/api/trace/runs?limit=5&task_id=" + id),
            name ? get(base + "/api/trace/leaks?limit=3&kind=task&name=" + encodeURIComponent(name)) : {leaks: []}
        ]);
        const list = element("dl", "detail-list");
        found[0].failures.forEach(function (failure) {
            const what = failure.exception ? failure.exception.type : failure.outcome;
            row(list, failure.retries ? "Failure, try " + (failure.retries + 1) : "Failure",
                [link(what + ": frames, locals and shell", base + "/trace/failures/" + encodeURIComponent(failure.id))]);
        });
        found[1].runs.forEach(function (run) {
            const parts = [];
            if (run.kept_bytes !== null && run.kept_bytes !== undefined) { parts.push("kept " + size(run.kept_bytes)); }
            if (run.memory && run.memory.rss_bytes) { parts.push((parts.length ? ", " : "") + size(run.memory.rss_bytes) + " resident"); }
            if (parts.length) { row(list, "Memory of this run", parts); }
        });
        found[2].leaks.forEach(function (leak) {
            row(list, "This task " + (leak.verdict === "leaking" ? "leaks" : "was looked at"),
                [link(size(leak.kept_bytes_per_run) + " a run (" + leak.verdict.replace(/_/g, " ") + ")", base + "/trace/leaks/" + encodeURIComponent(leak.id))]);
        });
        if (name) { row(list, "All its runs", [link(name, base + "/trace/runs/task/" + encodeURIComponent(name))]); }
        show(place, list);
    }

    async function worker(place) {
        const base = place.dataset.base;
        const name = place.dataset.worker;
        const found = await get(base + "/api/trace/workers?limit=1000");
        const list = element("dl", "detail-list");
        found.workers.filter(function (one) { return one.name === name; }).forEach(function (one) {
            row(list, "Memory", [link(size(one.rss_bytes) + " resident in " + one.rss_processes + (one.rss_processes === 1 ? " process" : " processes"), base + "/trace/workers?worker=" + encodeURIComponent(name))]);
            row(list, "Cost of measuring", [(one.overhead_ratio * 100).toFixed(2) + " % of its time"]);
            row(list, "Failures", [link("of this worker", base + "/trace/failures/all?worker=" + encodeURIComponent(name))]);
        });
        show(place, list);
    }

    // Facts beside Flower's are a courtesy: when the store is down, Flower's page must look as it always does.
    const onTask = document.getElementById("trace-on-task");
    const onWorker = document.getElementById("trace-on-worker");
    if (onTask) { task(onTask).catch(function () { onTask.hidden = true; }); }
    if (onWorker) { worker(onWorker).catch(function () { onWorker.hidden = true; }); }
}());
