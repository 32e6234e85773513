// Alert rules as the server takes and refuses them.

// A name that is not taken: wanted, wanted-2, wanted-3 …
export function freeName(wanted, taken) {
    let name = wanted;
    for (let number = 2; taken.includes(name); number += 1) { name = `${wanted}-${number}`; }
    return name;
}

// Which field of which rule a complaint is about, counted from 0; null where it names none.
export function blamed(complaint) {
    const found = complaint.match(/trace_alert_rules\[(\d+)\]: '?(\w+)?/);
    return found ? {rule: Number(found[1]) - 1, key: found[2] || "above"} : null;
}
