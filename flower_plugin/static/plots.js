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
            Object.assign({}, common, {size: 74, values: function (_, values) { return values.map(format); }})
        ];
    }

    function marksPlugin(marks) {
        return {hooks: {draw: [function (plot) {
            if (!marks || !marks.length) { return; }
            const context = plot.ctx;
            context.save();
            context.strokeStyle = css("--flower-text-muted");
            context.globalAlpha = 0.55;
            context.setLineDash([4, 4]);
            marks.forEach(function (mark) {
                const x = plot.valToPos(mark.at, "x", true);
                if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) { return; }
                context.beginPath();
                context.moveTo(x, plot.bbox.top);
                context.lineTo(x, plot.bbox.top + plot.bbox.height);
                context.stroke();
            });
            context.restore();
        }]}};
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

    function draw(place, data, options) {
        const width = Math.max(240, place.clientWidth - 16);
        place.replaceChildren();
        const plot = new uPlot(Object.assign({
            width: width, height: Math.max(200, Math.min(320, width * 0.42)),
            cursor: {drag: {x: true, y: false}},
            legend: {show: true, live: false}
        }, options), data, place);
        place.setAttribute("role", "img");
        place.setAttribute("aria-label", place.dataset.label || "Plot");
        plots.push({place: place, plot: plot});
        return plot;
    }

    function line(label, at, more) {
        return Object.assign({label: label, stroke: colour(at), width: 2, spanGaps: true, points: {size: 5}}, more || {});
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
            const lines = data.lines.map(function (one) { return {label: one.label, x: one.at, y: one[chosen], name: one.name}; })
                .filter(function (one) { return one.y.some(function (value) { return value !== null; }); });
            if (!lines.length) { place.textContent = "This platform does not tell it."; return; }
            const ran = lines.map(function (one) {
                const map = new Map();
                one.x.forEach(function (at, index) { map.set(at, one.name[index]); });
                return map;
            });
            draw(place, joined(lines), {
                axes: axes(format),
                scales: {y: {range: function (_, low, high) { return [0, high > 0 ? high * 1.08 : 1]; }}},
                series: [{}].concat(lines.map(function (one, at) { return line(one.label, at, {points: {show: one.x.length < 40}}); })),
                plugins: [marksPlugin(data.marks), wordsPlugin(function (plot, index) {
                    const at = plot.data[0][index];
                    const words = [exact(at)];
                    lines.forEach(function (one, number) {
                        const value = plot.data[number + 1][index];
                        if (value !== null && value !== undefined) {
                            const name = ran[number].get(at);
                            words.push(one.label + ": " + format(value) + (name ? " · " + name : ""));
                        }
                    });
                    return words.slice(0, 10).concat(near(data.marks, at, plot.scales.x.max - plot.scales.x.min));
                })]
            });
        },
        timeline: function (place, data) {
            draw(place, [data.at, data.runs, data.failed], {
                axes: axes(function (value) { return value.toLocaleString(); }),
                scales: {y: {range: function (_, low, high) { return [0, Math.max(1, high * 1.08)]; }}},
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
            draw(place, [data.at].concat(columns), {
                axes: axes(format),
                series: [{}].concat(reasons.map(function (reason, at) {
                    return {label: reason, stroke: colour(at), paths: function () { return null; }, points: {show: true, size: 7, fill: colour(at) + "aa"}};
                })),
                plugins: [wordsPlugin(function (plot, index) {
                    const value = data[chosen][index];
                    return [exact(data.at[index]), data.why[index] + ": " + (value === null ? "not measured" : format(value))];
                })]
            });
        }
    };

    function series(place, otherwise) {
        const card = place.closest(".tr-card");
        const button = card && card.querySelector('[data-series][aria-pressed="true"]');
        return button ? button.dataset.series : otherwise;
    }

    function drawAll(root) {
        plots = plots.filter(function (one) {
            if (document.contains(one.place) && !root.contains(one.place)) { return true; }
            one.plot.destroy();
            return false;
        });
        root.querySelectorAll("[data-plot]").forEach(function (place) {
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
    document.addEventListener("trace:fresh", function (event) { drawAll(event.target); });
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
