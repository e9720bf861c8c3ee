#!/usr/bin/env python3
"""Draws what `vmm-blk bench` measured: one HTML file, readable offline.

    report.py OUTPUT.html FILE.json …

A file is that of a laboratory (`bench --paths --output DIR` writes DIR/paths.json), of peers.py, or any results in fio's
structure (`bench --output-format=json+`, or fio's own).

Needs matplotlib (Debian: python3-matplotlib; Scripts/setup.sh bench installs it). The plots are SVG inside the page.
"""
import html
import io
import json
import statistics
import sys

try:
    import matplotlib
except ImportError:
    sys.exit("report.py: matplotlib is missing: run 'Scripts/setup.sh bench' or install python3-matplotlib")
matplotlib.use("Agg")
matplotlib.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "vmm-blk", "font.family": "sans-serif", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
})
import matplotlib.pyplot as plot  # noqa: E402

# Distinguishable also without colours: a marker for each line (palette of Okabe and Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99"]
MARKERS = "osD^vPX*<>"
GROUPS = {
    "bare": "Bare loops: the same calls without virtio",
    "engine": "Engines",
    "uring": "io_uring set-ups",
    "waiting": "How the device waits for work",
    "notification": "How the device notifies",
}


def svg(figure):
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg"):]


def count(value):
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def optional(value, form="{:.3g}", scale=1.0):
    return "" if value is None else form.format(value * scale)


def curves(report):
    """Latency against rate, a curve for each engine over all depths."""
    figure, (mean, tail) = plot.subplots(1, 2, figsize=(12, 5), sharex=True)
    engines = [row for row in report["rows"] if row["group"] == "engine" and not row.get("impossible")]
    for number, row in enumerate(engines):
        points = sorted((p for p in report["points"] if p["row"] == row["id"]), key=lambda p: p["depth"])
        style = dict(color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=5, label=row["title"])
        for axes, name in ((mean, "50"), (tail, "99")):
            shown = [p for p in points if p.get("latency")]
            axes.plot([p["iops"] / 1000 for p in shown], [p["latency"][name] / 1000 for p in shown], **style)
        for point in points:
            if point.get("latency") and point["depth"] in (1, 32, 256):
                mean.annotate(str(point["depth"]), (point["iops"] / 1000, point["latency"]["50"] / 1000),
                              textcoords="offset points", xytext=(4, 4), fontsize=7)
    for axes, name in ((mean, "median latency"), (tail, "99th percentile of latency")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("thousand requests a second")
        axes.set_ylabel(f"{name}, microseconds")
    mean.set_title("right and down is better; the numbers are depths")
    tail.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return svg(figure)


def bars(report, group):
    """Processor time for each request, and beside it the rate."""
    depth = report["mainDepth"]
    rows = [(row, point) for row in report["rows"] if row["group"] in group
            for point in report["points"] if point["row"] == row["id"] and point["depth"] == depth]
    if not rows:
        return ""
    names = [row["title"] if row["group"] != "bare" else "bare: " + row["title"] for row, _ in rows]
    figure, (cost, rate) = plot.subplots(1, 2, figsize=(12, 0.9 + 0.32 * len(rows)), sharey=True)
    places = range(len(rows))
    colours = ["#999999" if row["group"] == "bare" else COLOURS[0] for row, _ in rows]
    costs = [point.get("cpu") or 0 for _, point in rows]
    cost.barh(places, costs, color=colours)
    rounds = [[s["iops"] for s in report["samples"] if s["row"] == row["id"] and s["depth"] == depth] for row, _ in rows]
    whiskers = [[(point["iops"] - min(found)) / 1000 for (_, point), found in zip(rows, rounds)],
                [(max(found) - point["iops"]) / 1000 for (_, point), found in zip(rows, rounds)]]
    rate.barh(places, [point["iops"] / 1000 for _, point in rows], color=colours, xerr=whiskers, error_kw={"elinewidth": 1})
    for place, value in zip(places, costs):
        cost.annotate(f" {value:.2f}", (value, place), va="center", fontsize=8)
    for place, (row, point) in zip(places, rows):
        if point.get("limit"):
            rate.plot([point["limit"] / 1000] * 2, [place - 0.4, place + 0.4], color="#D55E00", linewidth=2)
    cost.set_yticks(list(places), names)
    cost.invert_yaxis()
    cost.set_xlabel(f"CPU microseconds for each request, depth {depth}")
    rate.set_xlabel("thousand requests a second; whiskers: all rounds; red: limit")
    return svg(figure)


def distribution(report):
    """What share of requests takes longer than what."""
    figure, axes = plot.subplots(figsize=(9, 5))
    depth = report["mainDepth"]
    engines = [row for row in report["rows"] if row["group"] == "engine" and not row.get("impossible")]
    for number, row in enumerate(engines):
        for point in report["points"]:
            if point["row"] != row["id"] or point["depth"] != depth or not point.get("latency"):
                continue
            curve = sorted((float(name), value) for name, value in point["latency"].items() if float(name) < 100)
            axes.plot([value / 1000 for _, value in curve], [100 - name for name, _ in curve],
                      color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=4,
                      label=row["title"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"microseconds, depth {depth}")
    axes.set_ylabel("percent of requests that take longer")
    axes.legend(fontsize=8)
    return svg(figure)


def table(report, group):
    depth = report["mainDepth"]
    rows = [row for row in report["rows"] if row["group"] == group]
    if not rows:
        return ""
    depths = sorted({p["depth"] for p in report["points"] for row in rows if p["row"] == row["id"]})
    depths = [d for d in depths if d in (depths[0], depth, 128)]
    head = (["", "what it is"] + [f"IOPS QD{d}" for d in depths]
            + ["of limit", "spread", "p50 µs", "p99", "p99.9", "CPU µs/IO", "syscalls/IO", "calls/IO", "select it with"])
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        cells = [f"<th scope=row>{html.escape(row['title'])}</th>", f"<td class=words>{html.escape(row['sentence'])}</td>"]
        if row.get("impossible"):
            cells.append(f"<td class=words colspan={len(head) - 2}>not here: {html.escape(row['impossible'])}</td>")
        else:
            points = {p["depth"]: p for p in report["points"] if p["row"] == row["id"]}
            main = points.get(depth, {})
            latency = main.get("latency") or {}
            cells += [f"<td>{count(points[d]['iops']) if d in points else ''}</td>" for d in depths]
            cells += [f"<td>{text}</td>" for text in (
                optional(main.get("ofLimit"), "{:.0f} %", 100), optional(main.get("spread"), "{:.0f} %", 100),
                optional(latency.get("50"), scale=0.001), optional(latency.get("99"), scale=0.001),
                optional(latency.get("99.9"), scale=0.001), optional(main.get("cpu")), optional(main.get("systemCalls")),
                optional(main.get("calls")))]
            cells.append(f"<td class=words>{html.escape(row.get('flags') or '')}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f"<h2>{GROUPS[group]}</h2><table>{''.join(lines)}</table>"


def paths(report):
    conditions = report["conditions"]
    depth = report["mainDepth"]
    advice = report["recommendation"]
    parts = [
        "<h1>Completion paths</h1>",
        f"<p>{html.escape(conditions['rw'])}, {conditions['blockSize']} bytes, on {html.escape(conditions['image'])} "
        f"({conditions['imageSize'] >> 20} MiB, {'direct I/O' if conditions['direct'] else 'page cache'}"
        f"{', in memory' if conditions['inMemory'] else ''}). {conditions['rounds']} interleaved rounds of "
        f"{conditions['slice']} s a row; medians. Linux {html.escape(conditions['kernel'])}, {conditions['processors']} × "
        f"{html.escape(conditions['processor'])}; load before the run {html.escape(conditions['load'])}; "
        f"{html.escape(conditions['started'])}.</p>",
        "<p>The limit is 1/(1/bare + 1/null): what the same calls in a bare loop and the ring with a null engine, both "
        "measured in the same round, allow together.</p>",
        f"<h2>Recommended here</h2><p><code>{html.escape(advice['flags'])}</code></p><ul>"
        + "".join(f"<li>{html.escape(reason)}</li>" for reason in advice["reasons"]) + "</ul>",
        "<h2>Latency against rate</h2>", curves(report),
        f"<h2>What a request costs, depth {depth}</h2>", bars(report, ("bare", "engine")),
        f"<h2>Distribution of latency, depth {depth}</h2>", distribution(report),
    ]
    for group in GROUPS:
        parts.append(table(report, group))
        if group not in ("bare", "engine"):
            parts.append(bars(report, (group,)))
    return "".join(parts)


def peers(report):
    parts = ["<h1>Against others</h1>",
             f"<p>{html.escape(report['method'])} Linux {html.escape(report['kernel'])}, {html.escape(report['started'])}.</p>"]
    for image in report["images"]:
        jobs = [job for job in report["jobs"] if any(r["image"] == image["id"] and r["job"] == job for r in report["results"])]
        parts.append(f"<h2>{html.escape(image['title'])}</h2>")
        figure, axes = plot.subplots(figsize=(12, 4.5))
        shown = [s for s in report["subjects"]
                 if any(r["image"] == image["id"] and r["subject"] == s["id"] for r in report["results"])]
        width = 0.8 / max(len(shown), 1)
        rows = []
        for number, subject in enumerate(shown):
            rates = []
            cells = [f"<th scope=row>{html.escape(subject['title'])}</th>"]
            for job in jobs:
                found = [r for r in report["results"]
                         if r["image"] == image["id"] and r["job"] == job and r["subject"] == subject["id"]]
                rate = statistics.median(r["iops"] for r in found) if found else None
                rates.append(rate)
                costs = [r["cpu"] for r in found if r.get("cpu") is not None]
                cost = f" <small>{statistics.median(costs):.2f} µs</small>" if costs else ""
                cells.append(f"<td>{count(rate)}{cost}</td>" if rate else "<td></td>")
            rows.append("<tr>" + "".join(cells) + "</tr>")
            places = [place + number * width for place, rate in enumerate(rates) if rate]
            axes.bar(places, [rate / 1000 for rate in rates if rate], width, label=subject["title"],
                     color=COLOURS[number % len(COLOURS)], hatch="//" if number >= len(COLOURS) else None)
        axes.set_xticks([place + 0.4 - width / 2 for place in range(len(jobs))], jobs, rotation=20)
        axes.set_yscale("log")
        axes.set_ylabel("thousand requests a second")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
        parts.append(svg(figure))
        head = "<tr><th></th>" + "".join(f"<th>{html.escape(job)}</th>" for job in jobs) + "</tr>"
        parts.append(f"<table>{head}{''.join(rows)}</table>")
        ratios = [r for r in report["ratios"] if r["image"] == image["id"]]
        head = "<tr><th>ratio</th>" + "".join(f"<th>{html.escape(job)}</th>" for job in jobs) + "</tr>"
        lines = []
        for title in dict.fromkeys(r["title"] for r in ratios):
            byjob = {r["job"]: r for r in ratios if r["title"] == title}
            cells = "".join(
                f"<td>{byjob[job]['ratio']:.2f} <small>({byjob[job]['low']:.2f} to {byjob[job]['high']:.2f})</small></td>"
                if job in byjob else "<td></td>" for job in jobs)
            lines.append(f"<tr><th scope=row>{html.escape(title)}</th>{cells}</tr>")
        parts.append(f"<table>{head}{''.join(lines)}</table>")
    for missing in report.get("missing", []):
        parts.append(f"<p>not measured: {html.escape(missing)}</p>")
    return "".join(parts)


def results(name, report):
    """Runs in fio's structure: a table, and the distribution of latency of each."""
    figure, axes = plot.subplots(figsize=(9, 5))
    head = ["run", "", "IOPS", "MiB/s", "p50 µs", "p99", "p99.9", "max", "CPU µs/IO"]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    for number, job in enumerate(report["jobs"]):
        options = {**report.get("global options", {}), **job.get("job options", {})}
        words = " ".join([options.get("rw", job["jobname"])] + [
            f"{key}={options[key]}" for key in ("bs", "iodepth", "numjobs") if key in options])
        for side in ("read", "write"):
            way = job[side]
            marks = way.get("clat_ns", {}).get("percentile")
            if not way["total_ios"] or not marks:
                continue
            curve = sorted((float(key), value) for key, value in marks.items())
            axes.plot([value / 1000 for _, value in curve], [100 - key for key, _ in curve],
                      color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=4,
                      linestyle="-" if side == "read" else "--", label=f"{words} {side} {number + 1}")
            cells = [count(way["iops"]), f"{way['bw_bytes'] / (1 << 20):.4g}"] + [
                f"{marks[key] / 1000:.3g}" for key in ("50.000000", "99.000000", "99.900000")] + [
                f"{way['clat_ns']['max'] / 1000:.3g}", optional(job.get("vmm-blk", {}).get("backend_cpu_us_per_io"))]
            lines.append(f"<tr><th scope=row>{html.escape(words)}</th><td>{side}</td>"
                         + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("microseconds")
    axes.set_ylabel("percent of requests that take longer")
    if axes.lines:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return f"<h1>{html.escape(name)}</h1><table>{''.join(lines)}</table>{svg(figure)}"


STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { font-weight: 600; } th[scope=row] { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 12em; }
svg { max-width: 100%; height: auto; } small { color: #666; } code { background: #f3f3f3; padding: 0.2em 0.4em; }
"""


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    parts = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        if "subjects" in report:
            parts.append(peers(report))
        elif "rows" in report:
            parts.append(paths(report))
        elif report.get("jobs"):
            parts.append(results(path, report))
        else:
            sys.exit(f"report.py: {path} is none of the files that this draws")
    page = ("<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>vmm-blk bench</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>")
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(page)


if __name__ == "__main__":
    main()
