// Runs below the memory plot: a lane per process, bars as long as the runs, each in the color of its name.
import {element} from "../page/dom.js";
import {clip, duration, escaped, exact} from "../page/text.js";
import {placed} from "./bars.js";

const MOST_LANES = 12;
const MOST_NAMES = 12;

function bar([from, until, place, path], where, names, base) {
    const [name, colour] = names[place];
    const shown = element("a", "tr-task-" + colour);
    shown.style.left = where.left + "%";
    shown.style.width = where.width + "%";
    shown.href = base + path;
    // The same runs are links in the tables of their names.
    shown.tabIndex = -1;
    shown.title = `${escaped(name)}, ${exact(from)}, ${duration(until - from)}`;
    return shown;
}

function lane(label, runs, plot, names, base) {
    const ratio = window.devicePixelRatio || 1;
    const low = plot.scales.x.min;
    const span = plot.scales.x.max - low || 1;
    const title = element("span", "", label);
    title.style.width = plot.bbox.left / ratio + 4 + "px";
    const track = element("div");
    track.style.width = plot.bbox.width / ratio + "px";
    for (const run of runs) {
        const where = placed(run[0], run[1], low, span);
        if (where) { track.append(bar(run, where, names, base)); }
    }
    const row = element("div", "tr-lane");
    row.append(title, track);
    return row;
}

function legend(names) {
    const line = element("p");
    for (const [name, colour] of names.slice(0, MOST_NAMES)) {
        const item = element("span");
        item.append(element("i", "tr-dot tr-task-" + colour), escaped(clip(name, 60)));
        line.append(item);
    }
    if (names.length > MOST_NAMES) { line.append(` and ${names.length - MOST_NAMES} more names`); }
    return line;
}

export function removeLanes(place) { place.parentElement.querySelector(".tr-lanes")?.remove(); }

export function drawLanes(place, plot, data) {
    removeLanes(place);
    if (!data.names.length) { return; }
    const base = document.body.dataset.base + "/trace";
    const box = element("div", "tr-lanes");
    box.dataset.drawn = place.dataset.source;
    box.append(element("h3", "", "Single runs"));
    box.append(...data.lines.slice(0, MOST_LANES).map((one, at) =>
        lane(one.label, data.lanes[at], plot, data.names, base)), legend(data.names));
    place.after(box);
}
