// Updates the page with idiomorph, so that open, focused and scrolled elements are preserved.
import {Idiomorph} from "../vendor/idiomorph-0.8.0.esm.js";

// A plot that is hovered or focused is not updated.
function inUse(card) { return card.matches(":hover") || card.querySelector(":focus-visible") !== null; }

function cardsInUse(root) {
    const cards = [...root.querySelectorAll("[data-source]")].map((place) => place.closest(".tr-card"));
    return cards.filter((card) => card && inUse(card));
}

// Cards that are updated when they are no longer in use.
const waiting = new WeakSet();

function whenLeft(card, then) {
    if (waiting.has(card)) { return; }
    waiting.add(card);
    function left() {
        if (inUse(card) || !waiting.has(card)) { return; }
        waiting.delete(card);
        card.removeEventListener("mouseleave", soon);
        card.removeEventListener("focusout", soon);
        if (card.isConnected) { then(); }
    }
    // At this time the focus has not moved yet.
    function soon() { window.setTimeout(left); }
    card.addEventListener("mouseleave", soon);
    card.addEventListener("focusout", soon);
}

// Elements that scripts draw into; they are empty in the server's HTML.
function isDrawing(old, fresh) {
    return old instanceof Element && old.matches("[data-source]") && fresh.dataset?.source === old.dataset.source;
}

// By attribute of user state: open details, the selected series, selected rows.
const USER_STATE = {open: "details", "aria-pressed": "[data-series]", checked: "[data-pick], [data-pick-all]"};

function isUserState(name, node) { return Object.hasOwn(USER_STATE, name) && node.matches(USER_STATE[name]); }

/**
 * Make an element equal to a new version.
 *
 * @param {Element} old The element on the page.
 * @param {Element} fresh The version from the server.
 * @param {function(): void} catchUp Called when a skipped card is no longer in use.
 * @returns {boolean} Whether everything was updated.
 */
export function morph(old, fresh, catchUp) {
    const kept = cardsInUse(old);
    let complete = true;
    function leave(card) {
        complete = false;
        whenLeft(card, catchUp);
        return false;
    }
    Idiomorph.morph(old, fresh, {
        callbacks: {
            beforeNodeMorphed(node, becomes) {
                if (isDrawing(node, becomes)) { return false; }
                return kept.includes(node) ? leave(node) : true;
            },
            beforeNodeRemoved(node) {
                if (node instanceof Element && node.matches("[data-drawn]")) { return false; }
                const card = kept.find((one) => node.contains(one));
                return card ? leave(card) : true;
            },
            beforeAttributeUpdated: (name, node) => !isUserState(name, node)
        }
    });
    return complete;
}
