// Bars of running tasks over time, from the task name in each sample.

// Task names, the most frequent first.
export function namesByFrequency(lines) {
    const runs = new Map();
    for (const name of lines.flatMap((one) => one.name)) {
        if (name) { runs.set(name, (runs.get(name) || 0) + 1); }
    }
    return [...runs.keys()].sort((a, b) => runs.get(b) - runs.get(a));
}

// A bar extends to the next sample only within so many seconds: an idle process has none for minutes.
function barFrom(one, start, inARowS) {
    const name = one.name[start];
    let end = start;
    while (end + 1 < one.x.length && one.name[end + 1] === name) { end += 1; }
    const next = end + 1;
    const extended = next < one.x.length && one.measured[next] && one.x[next] - one.x[end] < inARowS;
    return {name, from: one.x[start], until: extended ? one.x[next] : one.x[end]};
}

// The bars of a process; a sample without a name ends a bar.
export function bars(one, inARowS) {
    const starts = [...one.x.keys()].filter((at) => one.name[at] && (!at || one.name[at - 1] !== one.name[at]));
    return starts.map((start) => barFrom(one, start, inARowS));
}

// The position of a bar on a lane, in percent of its width; null if it is outside.
export function placed(bar, low, span) {
    if (bar.until < low || bar.from > low + span) { return null; }
    const left = Math.max(0, (bar.from - low) / span * 100);
    return {left, width: Math.max(0.4, Math.min(100, (bar.until - low) / span * 100) - left)};
}
