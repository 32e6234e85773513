// Short messages in the corner of the page.
import {button, element} from "./dom.js";

export function toast(text, bad) {
    const shown = element("div", "tr-toast" + (bad ? " tr-toast-bad" : ""));
    shown.setAttribute("role", bad ? "alert" : "status");
    shown.textContent = text;
    const close = button("btn-close", "Close");
    close.addEventListener("click", () => shown.remove());
    shown.append(close);
    document.getElementById("tr-toasts").append(shown);
    window.setTimeout(() => shown.remove(), bad ? 12000 : 5000);
}
