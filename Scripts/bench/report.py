#!/usr/bin/python3
"""Draws the results of `vmm-blk bench` into one HTML file that can be read offline.

    report.py OUTPUT.html FILE.json …

A file is a laboratory's (`bench --paths --output DIR` writes DIR/paths.json), of peers.py, or any results in fio's
structure (`bench --output-format=json+`, or fio's own).

Needs matplotlib (Debian: python3-matplotlib; Scripts/setup.sh bench installs it). The plots are SVG inside the page.
"""
import html
import io
import json
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import plots  # noqa: E402
from plots import OTHERS, count, size  # noqa: E402

GROUPS = {
    "bare": "Bare loops: the same calls without virtio",
    "engine": "Engines",
    "uring": "io_uring set-ups",
    "waiting": "How the device waits for work",
    "notification": "How the device notifies",
}


def svg(figure):
    """The figure as an SVG element."""
    if figure is None:
        return ""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plots.plot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg"):]


def facts(pairs):
    """Conditions, at the top of what was measured under them."""
    rows = "".join(f"<tr><th scope=row>{html.escape(name)}</th><td class=words>{html.escape(str(value))}</td></tr>"
                   for name, value in pairs if value not in (None, ""))
    return f"<table class=facts>{rows}</table>"


def optional(value, form="{:.3g}", scale=1.0):
    return "" if value is None else form.format(value * scale)


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
                "disturbed" if (main.get("ofLimit") or 0) > 1.1 else optional(main.get("ofLimit"), "{:.0f} %", 100),
                optional(main.get("spread"), "{:.0f} %", 100),
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
    kind = "direct I/O" if conditions["direct"] else "page cache"
    rounds = conditions["rounds"]
    holes = conditions.get("holes") or 0
    null = next((p for p in report["points"] if p["row"] == "null" and p["depth"] == depth), None)
    parts = [
        "<h1>Completion paths</h1>",
        facts([
            ("workload", f"{conditions['rw']}, {size(conditions['blockSize'])}"),
            ("image", f"{conditions['image']}: {size(conditions['imageSize'])}, {kind}"
                      f"{', in memory' if conditions['inMemory'] else ''}"),
            ("holes", f"{100 * holes / conditions['imageSize']:.0f} % of the image: reading them costs no I/O, so its rates "
                      "are not the medium's" if holes else None),
            ("rows use", f"unless they say otherwise: engine {conditions.get('engine', 'auto')}, set-up "
                         f"{conditions.get('setup', 'of the default')}, waiting {conditions.get('waiting', 'as the default')}"),
            ("measured", f"{rounds} interleaved round{'' if rounds == 1 else 's'} of {conditions['slice']} s a row; medians"),
            ("machine", f"{conditions['processors']} × {conditions['processor']}, Linux {conditions['kernel']}, load before "
                        f"the run {conditions['load']}"),
            ("program", f"commit {conditions['commit']}" if conditions.get("commit") else None),
            ("when", conditions["started"].replace("T", " ")),
        ]),
        "<p>The limit is 1/(1/bare + 1/null): what the same calls in a bare loop and the ring with a null engine, both "
        "measured in the same round, allow together. A limit below its result is called disturbed: something else ran.</p>",
        f"<h2>Recommended here</h2><p><code>{html.escape(advice['flags'])}</code></p><ul>"
        + "".join(f"<li>{html.escape(reason)}</li>" for reason in advice["reasons"]) + "</ul>",
        # Without engines these would be empty axes.
        *(["<h2>Latency against rate</h2>", svg(plots.curves(report)),
           f"<h2>What a request costs, depth {depth}</h2>", svg(plots.bars(report, ("bare", "engine")))]
          if any(plots.engines(report)) else []),
        f"<p>Apart, because it moves no data: the null engine takes {count(null['iops'])} requests a second at depth {depth}"
        f"{', ' + format(null['cpu'], '.3g') + ' µs each' if null.get('cpu') else ''}.</p>" if null else "",
        *([f"<h2>Distribution of latency, depth {depth}</h2>", svg(plots.distribution(report))]
          if any(plots.engines(report)) else []),
    ]
    for group in GROUPS:
        parts.append(table(report, group))
        if group not in ("bare", "engine"):
            parts.append(svg(plots.bars(report, (group,))))
    return "".join(parts)


def peers(report):
    machine = f"{report['processors']} × {report['processor']}, " if report.get("processor") else ""
    load = f", load before the run {report['load']}" if report.get("load") else ""
    parts = ["<h1>Against others</h1>", facts([
        ("measured", report["method"]), ("machine", f"{machine}Linux {report['kernel']}{load}"),
        ("program", f"commit {report['commit']}" if report.get("commit") else None), ("when", report["started"])])]
    for image in report["images"]:
        jobs = [job for job in report["jobs"] if any(r["image"] == image["id"] and r["job"] == job for r in report["results"])]
        parts.append(f"<h2>{html.escape(image['title'])}</h2>")
        shown = [s for s in image.get("subjects", report.get("subjects", []))
                 if any(r["image"] == image["id"] and r["subject"] == s["id"] for r in report["results"])]
        rows = []
        for subject in shown:
            cells = [f"<th scope=row>{html.escape(subject['title'])}</th>"]
            for job in jobs:
                found = [r for r in report["results"]
                         if r["image"] == image["id"] and r["job"] == job and r["subject"] == subject["id"]]
                rate = statistics.median(r["iops"] for r in found) if found else None
                costs = [r["cpu"] for r in found if r.get("cpu") is not None]
                cost = f" <small>{statistics.median(costs):.2f} µs</small>" if costs else ""
                cells.append(f"<td>{count(rate)}{cost}</td>" if rate else "<td></td>")
            rows.append("<tr>" + "".join(cells) + "</tr>")
        parts += [svg(plots.peers(report, image)), svg(plots.peers(report, image, nulls=True))]
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
            if any("cpuRatio" in row for row in byjob.values()):
                cells = "".join(
                    f"<td>{byjob[job]['cpuRatio']:.2f}</td>" if "cpuRatio" in byjob.get(job, {}) else "<td></td>" for job in jobs)
                lines.append(f"<tr><th scope=row><small>… CPU time for each request</small></th>{cells}</tr>")
        parts.append(f"<table>{head}{''.join(lines)}</table>")
    for missing in report.get("missing", []):
        parts.append(f"<p>not measured: {html.escape(missing)}</p>")
    return "".join(parts)


def results(name, report):
    """Runs in fio's structure: a table, and the distribution of latency of each."""
    figure, axes = plots.plot.subplots(figsize=(9, 5))
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
                      color=OTHERS[number % len(OTHERS)][0], marker=OTHERS[number % len(OTHERS)][1], markersize=4,
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
    conditions = report["jobs"][0].get("vmm-blk", {}).get("conditions") or {}
    options = {**report.get("global options", {}), **report["jobs"][0].get("job options", {})}
    direct = conditions.get("direct", {"1": True, "0": False}.get(options.get("direct")))
    page_facts = facts([
        ("engine", conditions.get("engine") or options.get("ioengine")), ("set-up", conditions.get("setup")),
        ("waiting", conditions.get("waiting")),
        ("image", conditions.get("image") or options.get("filename")),
        ("way", None if direct is None else "direct I/O" if direct else "page cache"),
        ("machine", f"{conditions['processors']} × {conditions['processor']}, Linux {conditions['kernel']}"
         if conditions else None),
        ("program", f"commit {conditions['commit']}" if conditions.get("commit") else report.get("fio version")),
        ("when", report.get("time"))])
    warnings = "".join(f"<p>{html.escape(w)}</p>" for w in report["jobs"][0].get("vmm-blk", {}).get("warnings", []))
    return f"<h1>{html.escape(name)}</h1>{page_facts}{warnings}<table>{''.join(lines)}</table>{svg(figure)}"


STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { font-weight: 600; } th[scope=row] { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 12em; overflow-wrap: anywhere; }
table.facts { display: table; } table.facts th { vertical-align: top; }
svg { max-width: 100%; height: auto; } small { color: #666; } code { background: #f3f3f3; padding: 0.2em 0.4em; }
"""


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    parts = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        if "ratios" in report:
            parts.append(peers(report))
        elif "rows" in report:
            parts.append(paths(report))
        elif report.get("jobs"):
            parts.append(results(path, report))
        else:
            sys.exit(f"report.py: {path} is not a file that this script can draw")
    page = ("<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>vmm-blk bench</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>")
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(page)


if __name__ == "__main__":
    main()
