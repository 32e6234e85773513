// One line of JSON for each test that ran, for tests/unit/test_page_scripts.py.

const WANTED = {"test:pass": true, "test:fail": false};

export default async function* report(events) {
    for await (const {type, data} of events) {
        if (!(type in WANTED) || data.details?.type === "suite") { continue; }
        const error = data.details?.error;
        const why = error ? String(error.cause?.stack || error.cause || error.message) : "";
        yield JSON.stringify({name: data.name, passed: WANTED[type], skipped: Boolean(data.skip), why}) + "\n";
    }
}
