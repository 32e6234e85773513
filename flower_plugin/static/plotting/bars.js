// The position of a bar on a lane, in percent of its width; null if it is outside.
export function placed(from, until, low, span) {
    if (until < low || from > low + span) { return null; }
    const left = Math.max(0, (from - low) / span * 100);
    return {left, width: Math.max(0.15, Math.min(100, (until - low) / span * 100) - left)};
}
