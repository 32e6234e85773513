// Plots, with uPlot. The data stands in the page; colours follow the theme.
(function () {
    "use strict";

    const trace = window.celeryTrace;
    // Eight colours that differ in lightness too, so that they hold apart without colour vision.
    const LIGHT = ["#2f6f4f", "#b45309", "#1d4ed8", "#a21caf", "#0e7490", "#b91c1c", "#4d7c0f", "#6d28d9"];
    const DARK = ["#7bd88f", "#f5b759", "#7fb0ff", "#e58cf0", "#5fd3e6", "#ff8f87", "#b7dd6a", "#b79cff"];
    let plots = [];

    function dark() { return document.documentElement.getAttribute("data-bs-theme") === "dark"; }
    function css(name) { return getComputedStyle(document.body).getPropertyValue(name).trim(); }
    function colour(at) { return (dark() ? DARK : LIGHT)[at % 8]; }

    function axes(format) {
        const ink = css("--flower-text-muted") || "#667061";
        const rule = css("--bs-border-color") || "#ddd";
        const common = {stroke: ink, grid: {stroke: rule, width: 1}, ticks: {stroke: rule, width: 1}};
        return [
            Object.assign({}, common, {space: 70}),
            Object.assign({}, common, {size: 74, values: function (_, values) { return values.map(tick(format)); }},
                format === trace.size ? {incrs: BYTE_STEPS} : {})
        ];
    }

    // Ticks at whole steps of 1024, so that an axis in MiB says 50 and 100, not 47.7 and 95.4.
    const BYTE_STEPS = [];
    for (let unit = 1; unit < Math.pow(1024, 5); unit *= 1024) {
        [1, 2, 5, 10, 20, 50, 100, 200, 500].forEach(function (step) { BYTE_STEPS.push(step * unit); });
    }

    function tick(format) {
        return format === trace.size ? function (value) { return value === 0 ? "0" : trace.size(value).replace(".0 ", " ").replace(".00 ", " "); } : format;
    }

    const MARKS = {
        deploy: ["--bs-primary", [], 1], restart: ["--tr-info", [6, 3], 0.9], killed: ["--flower-danger", [4, 3], 0.9],
        start: ["--flower-text-muted", [2, 4], 0.6], end: ["--flower-text-muted", [2, 4], 0.6]
    };

    const RANK = ["deploy", "killed", "restart", "end", "start"];

    // Lines across the plot, with words on top where they find room; the others say theirs beside the cursor.
    function marksPlugin(marks) {
        return {hooks: {draw: [function (plot) {
            if (!marks || !marks.length) { return; }
            const context = plot.ctx;
            const ratio = window.devicePixelRatio || 1;
            context.save();
            context.font = 11 * ratio + "px " + (css("font-family") || "sans-serif");
            context.textAlign = "left";
            context.textBaseline = "bottom";
            marks.forEach(function (mark) {
                const x = Math.round(plot.valToPos(mark.at, "x", true));
                if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) { return; }
                const look = MARKS[mark.kind] || MARKS.start;
                context.strokeStyle = context.fillStyle = css(look[0]) || css("--flower-text-muted");
                context.globalAlpha = look[2];
                context.lineWidth = (mark.kind === "deploy" ? 2 : 1) * ratio;
                context.setLineDash(look[1].map(function (length) { return length * ratio; }));
                context.beginPath();
                context.moveTo(x, plot.bbox.top);
                context.lineTo(x, plot.bbox.top + plot.bbox.height);
                context.stroke();
            });
            // Words go to what matters most first, and to no place twice.
            const taken = [];
            context.globalAlpha = 1;
            marks.slice().sort(function (a, b) { return RANK.indexOf(a.kind) - RANK.indexOf(b.kind); }).forEach(function (mark) {
                const x = Math.round(plot.valToPos(mark.at, "x", true));
                if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) { return; }
                context.fillStyle = css((MARKS[mark.kind] || MARKS.start)[0]) || css("--flower-text-muted");
                const text = trace.visible(mark.text.length > 26 ? mark.text.slice(0, 25) + "…" : mark.text);
                const width = context.measureText(text).width;
                const left = Math.max(plot.bbox.left, Math.min(x + 3 * ratio, plot.bbox.left + plot.bbox.width - width));
                const room = 10 * ratio;
                if (taken.every(function (other) { return left > other[1] + room || left + width < other[0] - room; })) {
                    context.fillText(text, left, plot.bbox.top - 2 * ratio);
                    taken.push([left, left + width]);
                }
            });
            context.restore();
        }]}};
    }

    // Values across the plot, such as a limit or percentiles: [value, words], in the plot's own scale.
    function levelsPlugin(levels, token) {
        return {hooks: {draw: [function (plot) {
            const context = plot.ctx;
            const ratio = window.devicePixelRatio || 1;
            context.save();
            context.strokeStyle = context.fillStyle = css(token);
            context.setLineDash([8 * ratio, 4 * ratio]);
            context.lineWidth = ratio;
            context.font = 11 * ratio + "px " + (css("font-family") || "sans-serif");
            context.textAlign = "right";
            context.textBaseline = "bottom";
            let last = Infinity;
            levels.forEach(function (level) {
                const y = plot.valToPos(level[0], "y", true);
                if (y < plot.bbox.top || y > plot.bbox.top + plot.bbox.height) { return; }
                context.beginPath();
                context.moveTo(plot.bbox.left, y);
                context.lineTo(plot.bbox.left + plot.bbox.width, y);
                context.stroke();
                if (Math.abs(last - y) > 12 * ratio) {
                    context.fillText(level[1], plot.bbox.left + plot.bbox.width - 4 * ratio, y - 2 * ratio);
                    last = y;
                }
            });
            context.restore();
        }]}};
    }

    // What ran when: a lane for each process, a colour for each name; a point without a name breaks a bar. A bar goes on
    // to the next sample only within inARowS seconds: of an idle process there is none for minutes.
    function lanes(place, plot, lines, inARowS) {
        const old = place.parentElement.querySelector(".tr-lanes");
        if (old) { old.remove(); }
        const runs = new Map();
        lines.forEach(function (one) {
            one.name.forEach(function (name) { if (name) { runs.set(name, (runs.get(name) || 0) + 1); } });
        });
        if (!runs.size) { return; }
        const names = Array.from(runs.keys()).sort(function (a, b) { return runs.get(b) - runs.get(a); });
        const colours = new Map(names.map(function (name, at) { return [name, at < 7 ? colour(at + 1) : css("--flower-text-muted")]; }));
        const box = document.createElement("div");
        box.className = "tr-lanes";
        const title = document.createElement("h3");
        title.textContent = "What ran when";
        box.appendChild(title);
        const ratio = window.devicePixelRatio || 1;
        const low = plot.scales.x.min;
        const span = plot.scales.x.max - low || 1;
        lines.slice(0, 12).forEach(function (one) {
            const lane = document.createElement("div");
            lane.className = "tr-lane";
            const label = document.createElement("span");
            label.textContent = one.label;
            label.style.width = plot.bbox.left / ratio + 4 + "px";
            const track = document.createElement("div");
            track.style.width = plot.bbox.width / ratio + "px";
            one.x.forEach(function (at, index) {
                const name = one.name[index];
                if (!name || (index && one.name[index - 1] === name)) { return; }
                let end = index;
                while (end + 1 < one.x.length && one.name[end + 1] === name) { end += 1; }
                const next = end + 1;
                const goesOn = next < one.x.length && one.measured[next] && one.x[next] - one.x[end] < inARowS;
                const until = goesOn ? one.x[next] : one.x[end];
                if (until < low || at > low + span) { return; }
                const bar = document.createElement("i");
                const left = Math.max(0, (at - low) / span * 100);
                bar.style.left = left + "%";
                bar.style.width = Math.max(0.4, Math.min(100, (until - low) / span * 100) - left) + "%";
                bar.style.background = colours.get(name);
                bar.title = trace.visible(name) + ", " + exact(at) + (until > at ? " to " + exact(until) : "");
                track.appendChild(bar);
            });
            lane.append(label, track);
            box.appendChild(lane);
        });
        const legend = document.createElement("p");
        names.slice(0, 8).forEach(function (name) {
            const item = document.createElement("span");
            const dot = document.createElement("i");
            dot.style.background = colours.get(name);
            item.append(dot, trace.visible(name.length > 60 ? name.slice(0, 59) + "…" : name));
            legend.appendChild(item);
        });
        if (names.length > 8) { legend.append(" and " + (names.length - 8) + " more names, in grey"); }
        box.appendChild(legend);
        place.after(box);
    }

    // Says beside the cursor what a plain legend can't: exact bytes, what ran, which process started.
    function wordsPlugin(describe) {
        let box = null;
        return {hooks: {
            init: [function (plot) {
                box = document.createElement("div");
                box.className = "tr-plot-words";
                box.hidden = true;
                plot.over.appendChild(box);
                plot.over.addEventListener("mouseleave", function () { box.hidden = true; });
            }],
            setCursor: [function (plot) {
                const index = plot.cursor.idx;
                if (index === null || index === undefined) { box.hidden = true; return; }
                const lines = describe(plot, index);
                if (!lines.length) { box.hidden = true; return; }
                box.replaceChildren.apply(box, lines.map(function (line) {
                    const row = document.createElement("div");
                    row.textContent = trace.visible(line);
                    return row;
                }));
                box.hidden = false;
                const left = plot.cursor.left;
                const right = left > plot.over.clientWidth / 2;
                box.style.left = right ? "" : left + 14 + "px";
                box.style.right = right ? plot.over.clientWidth - left + 14 + "px" : "";
                box.style.top = "8px";
            }]
        }};
    }

    function exact(at) { return new Date(at * 1000).toLocaleString(undefined, {dateStyle: "short", timeStyle: "medium"}); }
    function near(marks, at, span) {
        return (marks || []).filter(function (mark) { return Math.abs(mark.at - at) < span / 60; }).slice(0, 4)
            .map(function (mark) { return mark.text; });
    }

    function joined(lines) {
        if (!lines.length) { return [[]]; }
        return uPlot.join(lines.map(function (line) { return [line.x, line.y]; }));
    }

    // The range of an axis of time: room on both sides, and so many seconds at least.
    function times(least, room) {
        return function (plot, low, high) {
            if (plot.data[0].length === 1) { low = high = plot.data[0][0]; }  // uPlot gives it years
            const more = Math.max(room(high - low), (least - (high - low)) / 2);
            return [low - more, high + more];
        };
    }

    function draw(place, data, options) {
        const width = Math.max(240, place.clientWidth - 16);
        place.replaceChildren();
        const plot = new uPlot(Object.assign({
            width: width, height: Math.max(200, Math.min(320, width * 0.42)),
            padding: [18, 26, 0, 0],
            cursor: {drag: {x: true, y: false}},
            legend: {show: true, live: false}
        }, options, {scales: Object.assign({x: {range: times(60, function () { return 0; })}}, options.scales)}), data, place);
        place.setAttribute("role", "img");
        place.setAttribute("aria-label", place.dataset.label || "Plot");
        plots.push({place: place, plot: plot});
        return plot;
    }

    function line(label, at, more) {
        return Object.assign({label: label, stroke: colour(at), width: 2, spanGaps: true, points: {size: 5}}, more || {});
    }

    // Which points have no line to either side, and would not be seen without a dot.
    function alone(one) {
        function dot(at) { return at < 0 || at >= one.y.length || one.y[at] === null; }
        const times = new Set(one.x.filter(function (_, at) { return one.y[at] !== null && dot(at - 1) && dot(at + 1); }));
        return function (plot, number, shown) {
            return shown ? null : Array.from(plot.data[0].keys()).filter(function (at) { return times.has(plot.data[0][at]) && plot.data[number][at] !== undefined; });
        };
    }

    const kinds = {
        growth: function (place, data) {
            let lines = data.lines.map(function (one) {
                return {label: one.label, x: one.points.map(function (p) { return p[0]; }), y: one.points.map(function (p) { return p[1]; })};
            });
            if (!lines.length) {
                lines = [{label: "kept", x: data.samples.map(function (p) { return p[0]; }), y: data.samples.map(function (p) { return p[1]; })}];
            }
            draw(place, joined(lines), {
                axes: axes(trace.size),
                scales: {y: {range: function (_, low, high) { return [Math.min(0, low), high > 0 ? high * 1.08 : 1]; }}},
                series: [{}].concat(lines.map(function (one, at) {
                    return line(one.label, at, lines.length === 1 ? {fill: colour(0) + "22"} : {});
                })),
                plugins: [marksPlugin(data.marks), wordsPlugin(function (plot, index) {
                    const at = plot.data[0][index];
                    const words = [exact(at)];
                    lines.forEach(function (one, number) {
                        const value = plot.data[number + 1][index];
                        if (value !== null && value !== undefined) { words.push(one.label + ": " + trace.size(value) + " kept"); }
                    });
                    return words.concat(near(data.marks, at, plot.scales.x.max - plot.scales.x.min));
                })]
            });
        },
        memory: function (place, data) {
            const chosen = series(place, "rss");
            const bytes = chosen === "rss" || chosen === "uss";
            const format = bytes ? trace.size : function (value) { return value === null ? "–" : value.toLocaleString(); };
            const shownLines = data.lines.filter(function (one) { return one[chosen].some(function (value) { return value !== null; }); });
            if (!shownLines.length) { place.textContent = "This platform does not tell it."; return; }
            const ran = shownLines.map(function (one) {
                return {label: one.label, x: one.at, name: one.name, measured: one.rss.map(function (value) { return value !== null; })};
            });
            // A point without any memory breaks the line; one that only lacks what is plotted does not.
            const lines = shownLines.map(function (one) {
                const told = Array.from(one.at.keys()).filter(function (at) { return one[chosen][at] !== null || one.rss[at] === null; });
                return {label: one.label, x: told.map(function (at) { return one.at[at]; }), y: told.map(function (at) { return one[chosen][at]; })};
            });
            const names = ran.map(function (one) {
                return new Map(one.x.map(function (at, index) { return [at, one.name[index]]; }));
            });
            // A limit far above everything would only press the lines flat.
            const most = Math.max.apply(null, lines.map(function (one) { return Math.max.apply(null, one.y); }));
            const limit = chosen === "rss" && data.limit && data.limit < most * 1.6 ? [[data.limit, "limit " + trace.size(data.limit)]] : [];
            let shown = "";
            draw(place, joined(lines), {
                axes: axes(format),
                // The lanes follow when somebody zooms.
                hooks: {draw: [function (plot) {
                    const span = [plot.scales.x.min, plot.scales.x.max, plot.bbox.width].join();
                    if (span !== shown) { shown = span; lanes(place, plot, ran, data.in_a_row_s); }
                }]},
                scales: {y: {range: function (_, low, high) { return [0, Math.max(high > 0 ? high * 1.08 : 1, limit.length ? limit[0][0] * 1.05 : 0)]; }}},
                series: [{}].concat(lines.map(function (one, at) { return line(one.label, at, {spanGaps: false, points: {show: one.x.length < 40, filter: alone(one)}}); })),
                plugins: [marksPlugin(data.marks), levelsPlugin(limit, "--flower-danger"), wordsPlugin(function (plot, index) {
                    const at = plot.data[0][index];
                    const words = [exact(at)];
                    lines.forEach(function (one, number) {
                        const value = plot.data[number + 1][index];
                        if (value !== null && value !== undefined) {
                            const name = names[number].get(at);
                            words.push(one.label + ": " + format(value) + (name ? " · " + name : ""));
                        } else if (value === null) {
                            words.push(one.label + ": not measured from here on");
                        }
                    });
                    return words.slice(0, 10).concat(near(data.marks, at, plot.scales.x.max - plot.scales.x.min));
                })]
            });
        },
        timeline: function (place, data) {
            draw(place, [data.at, data.runs, data.failed], {
                axes: axes(function (value) { return value.toLocaleString(); }),
                scales: {
                    // Half a slice of room on both sides, or the first and the last bar are cut.
                    x: {range: times(1800, function () { return 200; })},
                    y: {range: function (_, low, high) { return [0, Math.max(1, high * 1.08)]; }}
                },
                series: [{}, line("runs", 0, {paths: uPlot.paths.bars({size: [0.7, 60]}), fill: colour(0) + "55", points: {show: false}}),
                    line("failed", 5, {paths: uPlot.paths.bars({size: [0.7, 60]}), fill: colour(5) + "99", points: {show: false}})],
                plugins: [wordsPlugin(function (plot, index) {
                    return [exact(data.at[index]), data.runs[index].toLocaleString() + " runs, " + data.failed[index] + " failed",
                        "mean " + (data.mean_s[index] * 1000).toPrecision(3) + " ms"];
                })]
            });
        },
        scatter: function (place, data) {
            const chosen = series(place, "duration_s");
            const format = chosen === "duration_s" ? function (value) { return value >= 1 ? value.toPrecision(3) + " s" : (value * 1000).toPrecision(3) + " ms"; } : trace.size;
            const reasons = Array.from(new Set(data.why)).sort();
            const columns = reasons.map(function (reason) {
                return data[chosen].map(function (value, at) { return data.why[at] === reason ? value : null; });
            });
            const levels = chosen === "duration_s" ? Object.keys(data.percentiles || {}).map(function (name) {
                return [data.percentiles[name], name + " within " + format(data.percentiles[name])];
            }) : [];
            const plot = draw(place, [data.at].concat(columns), {
                axes: axes(format),
                scales: {
                    x: {range: times(60, function (span) { return span * 0.02; })},
                    y: {range: function (_, low, high) { const room = (high - low || Math.abs(high) || 1) * 0.08; return [Math.min(0, low - (low < 0 ? room : 0)), high + room]; }}
                },
                series: [{}].concat(reasons.map(function (reason, at) {
                    return {label: reason, stroke: colour(at), paths: function () { return null; }, points: {show: true, size: 7, fill: colour(at) + "aa"}};
                })),
                plugins: [levelsPlugin(levels, "--flower-text-muted"), wordsPlugin(function (plot, index) {
                    const value = data[chosen][index];
                    return [exact(data.at[index]), data.why[index] + ": " + (value === null ? "not measured" : format(value)), "click to open"];
                })]
            });
            let pressed = 0;
            plot.over.addEventListener("mousedown", function (event) { pressed = event.clientX; });
            plot.over.addEventListener("click", function (event) {
                const index = plot.cursor.idx;
                // A drag zooms; only a click that stood still opens a run.
                if (index === null || index === undefined || Math.abs(event.clientX - pressed) > 3) { return; }
                const address = new URL(window.location.href);
                address.searchParams.set("run", data.id[index]);
                address.hash = "opened-run";
                window.location.assign(address.href);
            });
        }
    };

    function series(place, otherwise) {
        const card = place.closest(".tr-card");
        const button = card && card.querySelector('[data-series][aria-pressed="true"]');
        return button ? button.dataset.series : otherwise;
    }

    function drawAll(root, kept) {
        function stays(place) { return (kept || []).some(function (card) { return card.contains(place); }); }
        plots = plots.filter(function (one) {
            if (document.contains(one.place) && (stays(one.place) || !root.contains(one.place))) { return true; }
            one.plot.destroy();
            return false;
        });
        root.querySelectorAll("[data-plot]").forEach(function (place) {
            if (stays(place)) { return; }
            const data = trace.data(place.dataset.source);
            if (data) { kinds[place.dataset.plot](place, data); }
        });
    }

    document.addEventListener("click", function (event) {
        const button = event.target.closest("[data-series]");
        if (!button) { return; }
        button.parentElement.querySelectorAll("[data-series]").forEach(function (other) {
            other.setAttribute("aria-pressed", other === button ? "true" : "false");
        });
        drawAll(button.closest(".tr-card"));
    });
    document.addEventListener("trace:fresh", function (event) { drawAll(event.target, event.detail.kept); });
    new MutationObserver(function () { drawAll(document.body); })
        .observe(document.documentElement, {attributes: true, attributeFilter: ["data-bs-theme"]});
    let resizing = 0;
    let width = window.innerWidth;
    window.addEventListener("resize", function () {
        if (window.innerWidth === width) { return; }
        width = window.innerWidth;
        window.clearTimeout(resizing);
        resizing = window.setTimeout(function () { drawAll(document.body); }, 150);
    });
    drawAll(document.body);
}());
