// Names and validation errors of alert rules.

// An unused name: wanted, wanted-2, wanted-3 …
export function freeName(wanted, taken) {
    let name = wanted;
    for (let number = 2; taken.includes(name); number += 1) { name = `${wanted}-${number}`; }
    return name;
}

// The rule (counted from 0) and field of a validation error; null if it names none.
export function invalidField(error) {
    const found = error.match(/trace_alert_rules\[(\d+)\]: '?(\w+)?/);
    return found ? {rule: Number(found[1]) - 1, key: found[2] || "above"} : null;
}
