// Additions to plots: marks, levels, and tooltips.
import {element} from "../page/dom.js";
import {clip, escaped} from "../page/text.js";
import {byWeight, takeRoom} from "./lines.js";
import {css} from "./theme.js";

// Kind of mark: colour, dashes, opacity.
const MARKS = {
    deploy: ["--bs-primary", [], 1], restart: ["--tr-info", [6, 3], 0.9], killed: ["--flower-danger", [4, 3], 0.9],
    start: ["--flower-text-muted", [2, 4], 0.6], end: ["--flower-text-muted", [2, 4], 0.6]
};

function styleOf(mark) { return MARKS[mark.kind] || MARKS.start; }
function ink(mark) { return css(styleOf(mark)[0]) || css("--flower-text-muted"); }
function font(ratio) { return 11 * ratio + "px " + (css("font-family") || "sans-serif"); }

// Draws on a plot's canvas and restores its state.
function onCanvas(draw) {
    return {hooks: {draw: [(plot) => {
        plot.ctx.save();
        plot.ctx.textBaseline = "bottom";
        draw(plot, plot.ctx, window.devicePixelRatio || 1);
        plot.ctx.restore();
    }]}};
}

function strokeMark(mark, x, plot, context, ratio) {
    const [, dashes, opacity] = styleOf(mark);
    context.strokeStyle = ink(mark);
    context.globalAlpha = opacity;
    context.lineWidth = (mark.kind === "deploy" ? 2 : 1) * ratio;
    context.setLineDash(dashes.map((length) => length * ratio));
    context.beginPath();
    context.moveTo(x, plot.bbox.top);
    context.lineTo(x, plot.bbox.top + plot.bbox.height);
    context.stroke();
}

function writeMark(mark, x, taken, plot, context, ratio) {
    const text = escaped(clip(mark.text, 26));
    const width = context.measureText(text).width;
    const left = Math.max(plot.bbox.left, Math.min(x + 3 * ratio, plot.bbox.left + plot.bbox.width - width));
    if (!takeRoom(taken, left, left + width, 10 * ratio)) { return; }
    context.fillStyle = ink(mark);
    context.fillText(text, left, plot.bbox.top - 2 * ratio);
}

// Vertical lines with labels on top if there is room; the tooltip has all labels.
export function marksPlugin(marks) {
    return onCanvas((plot, context, ratio) => {
        const place = (mark) => Math.round(plot.valToPos(mark.at, "x", true));
        const inside = (marks || []).filter((mark) =>
            place(mark) >= plot.bbox.left && place(mark) <= plot.bbox.left + plot.bbox.width);
        context.font = font(ratio);
        context.textAlign = "left";
        for (const mark of inside) { strokeMark(mark, place(mark), plot, context, ratio); }
        context.globalAlpha = 1;
        const taken = [];
        for (const mark of byWeight(inside)) { writeMark(mark, place(mark), taken, plot, context, ratio); }
    });
}

// Horizontal lines, such as a limit or percentiles: [value, label], in the plot's scale.
export function levelsPlugin(levels, token) {
    return onCanvas((plot, context, ratio) => {
        const right = plot.bbox.left + plot.bbox.width;
        context.strokeStyle = context.fillStyle = css(token);
        context.setLineDash([8 * ratio, 4 * ratio]);
        context.lineWidth = ratio;
        context.font = font(ratio);
        context.textAlign = "right";
        let last = Infinity;
        for (const [value, label] of levels) {
            const y = plot.valToPos(value, "y", true);
            if (y < plot.bbox.top || y > plot.bbox.top + plot.bbox.height) { continue; }
            context.beginPath();
            context.moveTo(plot.bbox.left, y);
            context.lineTo(right, y);
            context.stroke();
            if (Math.abs(last - y) > 12 * ratio) {
                context.fillText(label, right - 4 * ratio, y - 2 * ratio);
                last = y;
            }
        }
    });
}

function placeTooltip(box, plot) {
    const left = plot.cursor.left;
    const right = left > plot.over.clientWidth / 2;
    box.style.left = right ? "" : left + 14 + "px";
    box.style.right = right ? plot.over.clientWidth - left + 14 + "px" : "";
    box.style.top = "8px";
}

// A tooltip with exact values, running tasks and marks.
export function tooltipPlugin(describe) {
    const box = element("div", "tr-plot-tooltip");
    box.hidden = true;
    return {hooks: {
        init: [(plot) => {
            plot.over.append(box);
            plot.over.addEventListener("mouseleave", () => { box.hidden = true; });
        }],
        setCursor: [(plot) => {
            const index = plot.cursor.idx;
            const lines = index === null || index === undefined ? [] : describe(plot, index);
            box.hidden = !lines.length;
            if (box.hidden) { return; }
            box.replaceChildren(...lines.map((line) => element("div", "", line)));
            placeTooltip(box, plot);
        }]
    }};
}
