// The plots of a page. Their data is in the page.
import {onNewWidth} from "./page/dom.js";
import {KINDS} from "./plotting/kinds.js";
import {removeLanes} from "./plotting/lanes.js";
import {onNewTheme} from "./plotting/theme.js";

// By element: the plot, and the JSON that it was drawn from.
const drawn = new Map();

function chosenIn(place, otherwise) {
    const pressed = place.closest(".tr-card")?.querySelector('[data-series][aria-pressed="true"]');
    return pressed ? pressed.dataset.series : otherwise;
}

function forget(place) {
    drawn.get(place)?.plot?.destroy();
    drawn.delete(place);
}

function draw(place) {
    const block = document.getElementById(place.dataset.source);
    if (!block) { return; }
    forget(place);
    removeLanes(place);
    const [kind, otherwise] = KINDS[place.dataset.plot];
    const plot = kind(place, JSON.parse(block.textContent), chosenIn(place, otherwise));
    drawn.set(place, {plot, data: block.textContent});
}

function drawAll(root) { root.querySelectorAll("[data-plot]").forEach(draw); }

// After a refresh: redraw only plots with new data.
function drawNew(root) {
    for (const place of drawn.keys()) {
        if (!place.isConnected) { forget(place); }
    }
    for (const lanes of root.querySelectorAll("[data-drawn]")) {
        if (lanes.previousElementSibling?.dataset.source !== lanes.dataset.drawn) { lanes.remove(); }
    }
    for (const place of root.querySelectorAll("[data-plot]")) {
        const data = document.getElementById(place.dataset.source)?.textContent;
        if (drawn.get(place)?.data !== data) { draw(place); }
    }
}

document.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-series]");
    if (!chosen) { return; }
    for (const button of chosen.parentElement.querySelectorAll("[data-series]")) {
        button.setAttribute("aria-pressed", button === chosen ? "true" : "false");
    }
    drawAll(chosen.closest(".tr-card"));
});
document.addEventListener("trace:fresh", (event) => drawNew(event.target));
onNewTheme(() => drawAll(document));
onNewWidth(() => drawAll(document));
drawAll(document);
