// What is new on the page goes into it by idiomorph, so that what a person has opened, focused or scrolled stays.
import {Idiomorph} from "../vendor/idiomorph-0.8.0.esm.js";

// A drawing that somebody points at, or has reached by keyboard, stays as it is until they leave it.
function inUse(card) { return card.matches(":hover") || card.querySelector(":focus-visible") !== null; }

function cardsInUse(root) {
    const cards = [...root.querySelectorAll("[data-source]")].map((place) => place.closest(".tr-card"));
    return cards.filter((card) => card && inUse(card));
}

// Cards that somebody has to leave before they are brought up to date.
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
    // The focus has not gone to where it goes yet.
    function soon() { window.setTimeout(left); }
    card.addEventListener("mouseleave", soon);
    card.addEventListener("focusout", soon);
}

// What scripts have drawn: the server knows only the empty place of it.
function isDrawing(old, fresh) {
    return old instanceof Element && old.matches("[data-source]") && fresh.dataset?.source === old.dataset.source;
}

// Attributes that belong to the reader: what they opened, and which figure they chose to plot.
function isTheReaders(name, node) {
    return (name === "open" && node.matches("details")) || (name === "aria-pressed" && node.matches("[data-series]"));
}

/**
 * Make an element like another one.
 *
 * @param {Element} old Stands on the page.
 * @param {Element} fresh As the server sends it now.
 * @param {function(): void} catchUp Called when a drawing that was left as it is, is in use no more.
 * @returns {boolean} Whether all of it is like the other now.
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
            beforeAttributeUpdated: (name, node) => !isTheReaders(name, node)
        }
    });
    return complete;
}
