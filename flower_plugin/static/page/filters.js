// Filters are part of the URL: links keep them, and forms omit empty fields.

// The URL of a link that changes one parameter. A cursor is only valid for the same filter and order.
export function withArgument(href, name, value) {
    const address = new URL(href);
    if (value) {
        address.searchParams.set(name, value);
    } else {
        address.searchParams.delete(name);
    }
    if (name !== "cursor") { address.searchParams.delete("cursor"); }
    return address.pathname + address.search;
}

export function keepFilter(root) {
    for (const link of root.querySelectorAll("a[data-argument]")) {
        link.href = withArgument(window.location.href, link.dataset.argument, link.dataset.value);
    }
}

// Whether a field can be omitted from the URL.
export function isDefault(field) {
    return !field.value || (field.name === "range" && field.value === "all" && !field.hasAttribute("data-submit"));
}

function startForm(form) {
    form.addEventListener("submit", () => {
        for (const field of form.querySelectorAll("input, select")) {
            if (isDefault(field)) { field.disabled = true; }
        }
    });
    for (const field of form.querySelectorAll("[data-submit]")) {
        field.addEventListener("change", () => form.requestSubmit());
    }
}

export function startFilters() {
    document.querySelectorAll(".tr-filters").forEach(startForm);
    keepFilter(document);
    // After the back button: enable the omitted fields again.
    window.addEventListener("pageshow", () => {
        for (const field of document.querySelectorAll(".tr-filters [disabled]")) { field.disabled = false; }
    });
}
