// Ranges, steps and labels of axes.
import {size} from "../page/text.js";

// Steps of whole powers of 1024, so that an axis in MiB has 50 and 100, not 47.7 and 95.4.
export const BYTE_STEPS = [];
for (let unit = 1; unit < Math.pow(1024, 5); unit *= 1024) {
    BYTE_STEPS.push(...[1, 2, 5, 10, 20, 50, 100, 200, 500].map((step) => step * unit));
}

export function bytesTick(value) { return value === 0 ? "0" : size(value).replace(/\.0+ /, " "); }

// The range of a time axis, with margins and a minimum length in seconds.
export function times(least, room = () => 0) {
    return (plot, low, high) => {
        if (plot.data[0].length === 1) { low = high = plot.data[0][0]; }  // uPlot would show years
        const more = Math.max(room(high - low), (least - (high - low)) / 2);
        return [low - more, high + more];
    };
}

// From zero, or from below it, to a little above the highest value; never empty.
export function fromZero(low, high, least = 1) { return [Math.min(0, low), high > 0 ? high * 1.08 : least]; }

// With margins, including zero.
export function around(low, high) {
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [Math.min(0, low - (low < 0 ? room : 0)), high + room];
}

// A limit far above all values would flatten the lines.
export function limitInSight(limit, most) { return limit && limit < most * 1.6 ? limit : null; }
