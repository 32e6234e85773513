// Running tasks below the memory plot: a lane per process, a color per name.
import {element} from "../page/dom.js";
import {clip, escaped, exact} from "../page/text.js";
import {bars, namesByFrequency, placed} from "./bars.js";
import {colour, css} from "./theme.js";

const MOST_LANES = 12;
const MOST_COLOURS = 7;
const MOST_NAMES = 8;

function coloursOf(names) {
    return new Map(names.map((name, at) => [name, at < MOST_COLOURS ? colour(at + 1) : css("--flower-text-muted")]));
}

function barElement(bar, place, colours) {
    const shown = element("i");
    shown.style.left = place.left + "%";
    shown.style.width = place.width + "%";
    shown.style.background = colours.get(bar.name);
    shown.title = escaped(bar.name) + ", " + exact(bar.from) + (bar.until > bar.from ? " to " + exact(bar.until) : "");
    return shown;
}

function lane(one, plot, colours, inARowS) {
    const ratio = window.devicePixelRatio || 1;
    const low = plot.scales.x.min;
    const span = plot.scales.x.max - low || 1;
    const label = element("span", "", one.label);
    label.style.width = plot.bbox.left / ratio + 4 + "px";
    const track = element("div");
    track.style.width = plot.bbox.width / ratio + "px";
    for (const bar of bars(one, inARowS)) {
        const place = placed(bar, low, span);
        if (place) { track.append(barElement(bar, place, colours)); }
    }
    const row = element("div", "tr-lane");
    row.append(label, track);
    return row;
}

function legend(names, colours) {
    const line = element("p");
    for (const name of names.slice(0, MOST_NAMES)) {
        const dot = element("i");
        dot.style.background = colours.get(name);
        const item = element("span");
        item.append(dot, escaped(clip(name, 60)));
        line.append(item);
    }
    if (names.length > MOST_NAMES) { line.append(` and ${names.length - MOST_NAMES} more names (gray)`); }
    return line;
}

export function removeLanes(place) { place.parentElement.querySelector(".tr-lanes")?.remove(); }

export function drawLanes(place, plot, lines, inARowS) {
    removeLanes(place);
    const names = namesByFrequency(lines);
    if (!names.length) { return; }
    const colours = coloursOf(names);
    const box = element("div", "tr-lanes");
    box.dataset.drawn = place.dataset.source;
    box.append(element("h3", "", "Running tasks"));
    box.append(...lines.slice(0, MOST_LANES).map((one) => lane(one, plot, colours, inARowS)), legend(names, colours));
    place.after(box);
}
