// The plots: growth of a leak, memory of processes, runs over time, single runs, queues.
import {count, duration, exact, size} from "../page/text.js";
import {drawLanes} from "./lanes.js";
import {byReason, growthLines, highest, lonelyTimes, memoryLines, near, queueLines} from "./lines.js";
import {levelsPlugin, marksPlugin, tooltipPlugin} from "./plugins.js";
import {around, BYTE_STEPS, bytesTick, fromZero, limitInSight, times} from "./scales.js";
import {colour, css} from "./theme.js";

const uPlot = window.uPlot;

function axes(format) {
    const rule = css("--bs-border-color") || "#ddd";
    const common = {
        stroke: css("--flower-text-muted") || "#667061",
        grid: {stroke: rule, width: 1},
        ticks: {stroke: rule, width: 1}
    };
    const bytes = format === size;
    const tick = bytes ? bytesTick : format;
    return [
        {...common, space: 70},
        {...common, size: 74, values: (_, values) => values.map((value) => tick(value)),
            ...(bytes ? {incrs: BYTE_STEPS} : {})}
    ];
}

function paint(place, data, options) {
    const width = Math.max(240, place.clientWidth - 16);
    place.replaceChildren();
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", place.dataset.label || "Plot");
    return new uPlot({
        width, height: Math.max(200, Math.min(320, width * 0.42)),
        padding: [18, 26, 0, 0],
        cursor: {drag: {x: true, y: false}},
        legend: {show: true, live: false},
        ...options,
        scales: {x: {range: times(60)}, ...options.scales}
    }, data, place);
}

function line(label, at, more) {
    return {label, stroke: colour(at), width: 2, spanGaps: true, points: {size: 5}, ...more};
}

function joined(lines) { return uPlot.join(lines.map((one) => [one.x, one.y])); }
function span(plot) { return plot.scales.x.max - plot.scales.x.min; }

// Shows only dots of points without a line.
function dotsOf(one) {
    const lonely = lonelyTimes(one);
    return (plot, number, shown) => (shown ? null : [...plot.data[0].keys()].filter((at) =>
        lonely.has(plot.data[0][at]) && plot.data[number][at] !== undefined));
}

function growth(place, data) {
    const lines = growthLines(data);
    const only = lines.length === 1 ? {fill: colour(0) + "22"} : {};
    return paint(place, joined(lines), {
        axes: axes(size),
        scales: {y: {range: (_, low, high) => fromZero(low, high)}},
        series: [{}, ...lines.map((one, at) => line(one.label, at, only))],
        plugins: [marksPlugin(data.marks), tooltipPlugin((plot, index) => {
            const at = plot.data[0][index];
            const values = lines.map((one, number) => [one.label, plot.data[number + 1][index]]);
            const kept = values.filter(([, value]) => value !== null && value !== undefined);
            return [exact(at), ...kept.map(([label, value]) => `${label}: ${size(value)} retained`),
                ...near(data.marks, at, span(plot))];
        })]
    });
}

// The tooltip of a line at a time; empty if it has no point there.
function memoryTooltip(one, at, value, format) {
    if (value === undefined) { return []; }
    if (value === null) { return [one.label + ": no data from here on"]; }
    const name = one.names.get(at);
    return [`${one.label}: ${format(value)}${name ? " · " + name : ""}`];
}

// Redraws the lanes after zooming.
function lanesPlugin(place, data) {
    let shown = "";
    return {hooks: {draw: [(plot) => {
        const now = [plot.scales.x.min, plot.scales.x.max, plot.bbox.width].join();
        if (now !== shown) { shown = now; drawLanes(place, plot, data); }
    }]}};
}

function memory(place, data, chosen) {
    const lines = memoryLines(data.lines, chosen);
    if (!lines.length) { place.textContent = "Not available on this platform."; return null; }
    const format = chosen === "rss" || chosen === "uss" ? size : count;
    const limit = chosen === "rss" ? limitInSight(data.limit, highest(lines)) : null;
    return paint(place, joined(lines), {
        axes: axes(format),
        scales: {y: {range: (_, low, high) => [0, Math.max(fromZero(0, high)[1], (limit || 0) * 1.05)]}},
        series: [{}, ...lines.map((one, at) =>
            line(one.label, at, {spanGaps: false, points: {show: one.x.length < 40, filter: dotsOf(one)}}))],
        plugins: [
            lanesPlugin(place, data), marksPlugin(data.marks),
            levelsPlugin(limit ? [[limit, "limit " + size(limit)]] : [], "--flower-danger"),
            tooltipPlugin((plot, index) => {
                const at = plot.data[0][index];
                const texts = lines.flatMap((one, number) =>
                    memoryTooltip(one, at, plot.data[number + 1][index], format));
                return [exact(at), ...texts].slice(0, 10).concat(near(data.marks, at, span(plot)));
            })
        ]
    });
}

function timeline(place, data) {
    const barsOf = (label, at, fill) => line(label, at, {
        paths: uPlot.paths.bars({size: [0.7, 60]}), fill: colour(at) + fill, points: {show: false}
    });
    return paint(place, [data.at, data.runs, data.failed], {
        axes: axes(count),
        scales: {
            // Half an interval of margin on both sides, or the first and last bar would be cut.
            x: {range: times(1800, () => 200)},
            y: {range: (_, low, high) => [0, Math.max(1, high * 1.08)]}
        },
        series: [{}, barsOf("runs", 0, "55"), barsOf("failed", 5, "99")],
        plugins: [tooltipPlugin((_, index) => [
            exact(data.at[index]), `${count(data.runs[index])} runs, ${data.failed[index]} failed`,
            "mean " + duration(data.mean_s[index])
        ])]
    });
}

// A drag zooms; a click opens a run, at an address or on this page.
function openOnClick(plot, ids, place) {
    let pressed = 0;
    plot.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
    plot.over.addEventListener("click", (event) => {
        const index = plot.cursor.idx;
        if (index === null || index === undefined || Math.abs(event.clientX - pressed) > 3) { return; }
        const address = new URL(place.dataset.open || window.location.href, window.location.href);
        address.searchParams.set("run", ids[index]);
        address.hash = "opened-run";
        window.location.assign(address.href);
    });
}

function scatter(place, data, chosen) {
    const format = chosen === "duration_s" ? duration : size;
    const {reasons, columns} = byReason(data, chosen);
    const percentiles = chosen === "duration_s" ? Object.entries(data.percentiles || {}) : [];
    const plot = paint(place, [data.at, ...columns], {
        axes: axes(format),
        scales: {
            x: {range: times(60, (wide) => wide * 0.02)},
            y: {range: (_, low, high) => around(low, high)}
        },
        series: [{}, ...reasons.map((reason, at) => ({
            label: reason, stroke: colour(at), paths: () => null,
            points: {show: true, size: 7, fill: colour(at) + "aa"}
        }))],
        plugins: [
            levelsPlugin(percentiles.map(([name, value]) => [value, `${name} ${format(value)}`]),
                "--flower-text-muted"),
            tooltipPlugin((_, index) => {
                const value = data[chosen][index];
                return [exact(data.at[index]),
                    `${data.why[index]}: ${value === null ? "no data" : format(value)}`, "click to open"];
            })
        ]
    });
    openOnClick(plot, data.id, place);
    return plot;
}

function queues(place, data, chosen) {
    const lines = queueLines(data.lines, chosen);
    if (!lines.length) { place.textContent = "No data yet."; return null; }
    const format = chosen.endsWith("_s") ? duration : count;
    return paint(place, joined(lines), {
        axes: axes(format),
        scales: {y: {range: (_, low, high) => fromZero(0, high)}},
        series: [{}, ...lines.map((one, at) => line(one.label, at))],
        plugins: [tooltipPlugin((plot, index) => {
            const values = lines.map((one, number) => [one.label, plot.data[number + 1][index]]);
            const known = values.filter(([, value]) => value !== null && value !== undefined);
            return [exact(plot.data[0][index]), ...known.map(([label, value]) => `${label}: ${format(value)}`)];
        })]
    });
}

// By kind of plot: the draw function and the default series.
export const KINDS = {
    growth: [growth, ""], memory: [memory, "rss"], timeline: [timeline, ""], scatter: [scatter, "duration_s"],
    queues: [queues, "depth"]
};
