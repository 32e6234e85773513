// Colors of plots, by theme.

// Eight colors of different lightness, distinguishable without color vision.
const LIGHT = ["#2f6f4f", "#b45309", "#1d4ed8", "#a21caf", "#0e7490", "#b91c1c", "#4d7c0f", "#6d28d9"];
const DARK = ["#7bd88f", "#f5b759", "#7fb0ff", "#e58cf0", "#5fd3e6", "#ff8f87", "#b7dd6a", "#b79cff"];

export function css(name) { return getComputedStyle(document.body).getPropertyValue(name).trim(); }

export function colour(at) {
    const dark = document.documentElement.getAttribute("data-bs-theme") === "dark";
    return (dark ? DARK : LIGHT)[at % 8];
}

export function onNewTheme(draw) {
    new MutationObserver(draw).observe(
        document.documentElement, {attributes: true, attributeFilter: ["data-bs-theme"]});
}
