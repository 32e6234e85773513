// Local variables of a failure. Containers and long texts open on click.
import {plant} from "./locals/tree.js";
import {isLong, node} from "./locals/values.js";
import {button, data, element} from "./page/dom.js";

const heap = data("failure-heap")?.heap || [];

// The row below a value, with the whole value.
function more(row, found) {
    const wide = element("td");
    wide.colSpan = 3;
    if (isLong(found)) {
        const whole = element("pre", "tr-pre", found.value);
        whole.tabIndex = 0;
        wide.append(whole);
    } else {
        wide.append(plant(heap, row.querySelector("th").textContent, Number(row.dataset.ref)));
    }
    const below = element("tr", "tr-tree-row");
    below.hidden = true;
    below.append(wide);
    row.after(below);
    return below;
}

function makeOpenable(row, found) {
    const cell = row.querySelector("td");
    const opener = button("tr-expand", "Open " + row.querySelector("th").textContent);
    opener.setAttribute("aria-expanded", "false");
    cell.prepend(opener);
    let below = null;
    function toggle() {
        below = below || more(row, found);
        below.hidden = !below.hidden;
        opener.setAttribute("aria-expanded", below.hidden ? "false" : "true");
    }
    opener.addEventListener("click", toggle);
    for (const code of cell.querySelectorAll("code")) {
        code.classList.add("tr-openable");
        code.addEventListener("click", () => { if (!window.getSelection().toString()) { toggle(); } });
    }
}

for (const row of document.querySelectorAll("tr[data-ref]")) {
    const found = node(heap, Number(row.dataset.ref));
    if (found && (found.items.length || isLong(found))) { makeOpenable(row, found); }
}
