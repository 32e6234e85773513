// Requests for changes, with the XSRF token.

export function cookie(name) {
    const match = document.cookie.match("(?:^|;)\\s*" + name + "\\s*=\\s*([^;]+)");
    return match ? decodeURIComponent(match[1]) : "";
}

// The text of an error response.
export function refusal(value, status) {
    const why = value.error || {what: `The request failed (${status}).`};
    return [why.what, why.why, why.next].filter(Boolean).join(" ");
}

export async function post(address, body, signal) {
    const answer = await fetch(address, {
        method: "POST", credentials: "same-origin", signal,
        headers: {"Content-Type": "application/json", "X-XSRFToken": cookie("_xsrf")},
        body: body || "{}"
    });
    const value = await answer.json().catch(() => ({}));
    if (!answer.ok) { throw new Error(refusal(value, answer.status)); }
    return value;
}
