// What the server knows of a plot, as the columns that are drawn.

function column(points, at) { return points.map((point) => point[at]); }

// A line for each process, or one for all where single ones are not known.
export function growthLines(data) {
    const lines = data.lines.length ? data.lines : [{label: "kept", points: data.samples}];
    return lines.map(({label, points}) => ({label, x: column(points, 0), y: column(points, 1)}));
}

// A line for each process that tells what is plotted.
export function memoryLines(lines, chosen) {
    return lines.filter((one) => one[chosen].some((value) => value !== null)).map((one) => {
        // A point without any memory breaks the line; one that only lacks what is plotted does not.
        const told = [...one.at.keys()].filter((at) => one[chosen][at] !== null || one.rss[at] === null);
        return {
            label: one.label,
            x: told.map((at) => one.at[at]),
            y: told.map((at) => one[chosen][at]),
            names: new Map(one.at.map((at, index) => [at, one.name[index]])),
            ran: {label: one.label, x: one.at, name: one.name, measured: one.rss.map((value) => value !== null)}
        };
    });
}

export function highest(lines) { return Math.max(...lines.map((one) => Math.max(...one.y))); }

// When a line has a point with no line to either side, which would not be seen without a dot.
export function lonelyTimes(line) {
    const breaks = (at) => at < 0 || at >= line.y.length || line.y[at] === null;
    return new Set(line.x.filter((_, at) => line.y[at] !== null && breaks(at - 1) && breaks(at + 1)));
}

// The reasons why single runs were kept, each with a column of what is plotted of its runs.
export function byReason(data, chosen) {
    const reasons = [...new Set(data.why)].sort();
    const columns = reasons.map((reason) =>
        data[chosen].map((value, at) => (data.why[at] === reason ? value : null)));
    return {reasons, columns};
}

// What is marked near a time, in words.
export function near(marks, at, span) {
    return (marks || []).filter((mark) => Math.abs(mark.at - at) < span / 60).slice(0, 4).map((mark) => mark.text);
}

// Marks by weight: words go to what matters most first.
const RANK = ["deploy", "killed", "restart", "end", "start"];
export function byWeight(marks) { return marks.slice().sort((a, b) => RANK.indexOf(a.kind) - RANK.indexOf(b.kind)); }

// Whether something from left to right has room beside what is there, and if so takes it.
export function takeRoom(taken, left, right, gap) {
    const free = taken.every((other) => left > other[1] + gap || right < other[0] - gap);
    if (free) { taken.push([left, right]); }
    return free;
}
