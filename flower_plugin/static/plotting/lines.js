// Converts the server's data to columns of a plot.

function column(points, at) { return points.map((point) => point[at]); }

// A line per process, or one for all if they are not known.
export function growthLines(data) {
    const lines = data.lines.length ? data.lines : [{label: "retained", points: data.samples}];
    return lines.map(({label, points}) => ({label, x: column(points, 0), y: column(points, 1)}));
}

// A line per process with data of the selected series.
export function memoryLines(lines, chosen) {
    return lines.filter((one) => one[chosen].some((value) => value !== null)).map((one) => {
        // A point without memory breaks the line; one that only lacks the selected series does not.
        const known = [...one.at.keys()].filter((at) => one[chosen][at] !== null || one.rss[at] === null);
        return {
            label: one.label,
            x: known.map((at) => one.at[at]),
            y: known.map((at) => one[chosen][at]),
            names: new Map(one.at.map((at, index) => [at, one.name[index]]))
        };
    });
}

export function highest(lines) { return Math.max(...lines.map((one) => Math.max(...one.y))); }

// Times of isolated points, which are only visible as dots.
export function lonelyTimes(line) {
    const breaks = (at) => at < 0 || at >= line.y.length || line.y[at] === null;
    return new Set(line.x.filter((_, at) => line.y[at] !== null && breaks(at - 1) && breaks(at + 1)));
}

// The reasons for storing single runs, each with a column of the selected series.
export function byReason(data, chosen) {
    const reasons = [...new Set(data.why)].sort();
    const columns = reasons.map((reason) =>
        data[chosen].map((value, at) => (data.why[at] === reason ? value : null)));
    return {reasons, columns};
}

// Texts of the marks near a time.
export function near(marks, at, span) {
    return (marks || []).filter((mark) => Math.abs(mark.at - at) < span / 60).slice(0, 4).map((mark) => mark.text);
}

// Marks by importance, for placing their labels.
const RANK = ["deploy", "killed", "restart", "end", "start"];
export function byWeight(marks) { return marks.slice().sort((a, b) => RANK.indexOf(a.kind) - RANK.indexOf(b.kind)); }

// Reserves the space from left to right, if it is free.
export function takeRoom(taken, left, right, gap) {
    const free = taken.every((other) => left > other[1] + gap || right < other[0] - gap);
    if (free) { taken.push([left, right]); }
    return free;
}

// The lines of queues, of one quantity; its waits have times of their own. Queues without a value have no line.
export function queueLines(lines, chosen) {
    return lines.map((one) => ({label: one.label, x: chosen === "wait_s" ? one.wait_at : one.at, y: one[chosen]}))
        .filter((one) => one.y.some((value) => value !== null));
}
