#!/usr/bin/python3
"""The drawings of `report.py`, and those of the documents.

    plots.py FOLDER peers.json              peers-IMAGE.svg for each image of a run of peers.py
    plots.py FOLDER paths.json              paths-curves.svg of a run of the laboratory

One rule for all of them: bars begin at zero on a linear axis, rates over many orders of magnitude are points on a logarithmic
one; a subject has the same colour everywhere; title and conditions are on the picture; whiskers are the rounds, all of them;
what moves no data (null) is separate from what reaches a medium.

Needs matplotlib (Debian: python3-matplotlib; Scripts/setup.sh bench installs it).
"""
import json
import os
import statistics
import sys
import textwrap

try:
    import matplotlib
except ImportError:
    sys.exit("plots.py: matplotlib is missing: run 'Scripts/setup.sh bench' or install python3-matplotlib")
matplotlib.use("Agg")
matplotlib.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "vmm-blk", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3,
})
import matplotlib.pyplot as plot  # noqa: E402

# A subject's colour and marker, wherever it is drawn: the laboratory's engines and those of peers.py have the same.
STYLES = {
    "vmm-auto": ("#0072B2", "o"), "vmm-sleep": ("#56B4E9", "s"), "vmm-busy": ("#003F6B", "D"),
    "uring": ("#009E73", "o"), "mapped": ("#44AA99", "^"), "cached": ("#332288", "v"), "aio": ("#882255", "P"),
    "sync": ("#999933", "s"), "threads": ("#AA4499", "X"), "null": ("#888888", "*"),
    "qemu-native": ("#D55E00", "o"), "qemu-native-iothread": ("#F0A070", "o"),
    "qemu-io_uring": ("#B8860B", "s"), "qemu-io_uring-iothread": ("#E6C35C", "s"),
    "qemu-threads": ("#CC79A7", "^"), "qemu-threads-iothread": ("#E8B8D0", "^"),
    "qemu-null": ("#555555", "*"), "qemu-null-silent": ("#AAAAAA", "*"), "fio": ("#000000", "D"), "bare": ("#BBBBBB", "o"),
}
OTHERS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#B8860B", "v"), ("#56B4E9", "P")]


def style(ident, number=0):
    """Colour and marker of a subject by its id."""
    for name in (ident, ident.removeprefix("vmm-")):
        if name in STYLES:
            return STYLES[name]
    if ident.startswith("bare"):
        return STYLES["bare"]
    return OTHERS[number % len(OTHERS)]


def is_null(ident):
    return "null" in ident


def count(value):
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def size(value):
    """Bytes for people: 4 KiB."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 1 << shift:
            return f"{value / (1 << shift):.3g} {unit}"
    return f"{value} bytes"


def head(figure, title, conditions):
    """Title and conditions above the axes, on the picture itself."""
    width = int(figure.get_figwidth() * 15)
    lines = "\n".join(textwrap.wrap(conditions, width))
    height = figure.get_figheight()
    figure.suptitle(title, x=0.01, y=1 + 0.24 * (lines.count("\n") + 2) / height, ha="left", va="bottom", fontsize=12,
                    fontweight="bold")
    figure.text(0.01, 1 + 0.12 / height, lines, ha="left", va="bottom", fontsize=8, color="#444444")


def rate_bars(axes, subjects, rates):
    """Bars of one panel. `rates` has every round of each subject; the bar is the median, whiskers are all rounds."""
    middle = [statistics.median(found) if found else 0 for found in rates]
    places = range(len(subjects))
    axes.barh(places, middle, color=[style(ident, n)[0] for n, (ident, _) in enumerate(subjects)], height=0.75)
    spread = [n for n, found in enumerate(rates) if len(found) > 1]
    if spread:
        axes.errorbar(
            [middle[n] for n in spread], spread,
            xerr=[[middle[n] - min(rates[n]) for n in spread], [max(rates[n]) - middle[n] for n in spread]],
            fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2)
    top = max([max(found) for found in rates if found], default=0) or 1
    for place, found in enumerate(rates):
        if found:
            axes.annotate(count(middle[place]), (max(found), place), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=7)
    axes.set_xlim(0, top * 1.25)
    axes.set_ylim(len(subjects) - 0.4, -0.6)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: count(value) if value else "0")
    axes.grid(axis="y", visible=False)


def panels(title, conditions, subjects, jobs, rates):
    """A panel for each job with its own linear axis, and the same subjects in the same order.

    `subjects` are pairs of id and title, `rates(id, job)` every round's requests per second.
    """
    columns = min(4, len(jobs))
    rows = -(-len(jobs) // columns)
    figure, grid = plot.subplots(
        rows, columns, figsize=(3 + 2.4 * columns, rows * (0.7 + 0.21 * len(subjects))), squeeze=False, sharey=True)
    for number, axes in enumerate(grid.flat):
        if number >= len(jobs):
            axes.set_visible(False)
            continue
        rate_bars(axes, subjects, [rates(ident, jobs[number]) for ident, _ in subjects])
        axes.set_title(jobs[number], fontsize=9, loc="left")
    for line in grid:
        line[0].set_yticks(range(len(subjects)), [name for _, name in subjects], fontsize=8)
    figure.tight_layout()
    head(figure, title, conditions)
    return figure


def peers(report, image, nulls=False):
    """Requests per second of all subjects on one image; with `nulls`, of those that move no data."""
    found = [r for r in report["results"] if r["image"] == image["id"]]
    subjects = [(s["id"], s["title"]) for s in image.get("subjects", report.get("subjects", []))
                if is_null(s["id"]) == nulls and any(r["subject"] == s["id"] for r in found)]
    jobs = [job for job in report["jobs"] if any(r["job"] == job and r["subject"] in dict(subjects) for r in found)]
    if not subjects or not jobs:
        return None
    words = [report["method"].rstrip("."), f"Linux {report['kernel']}"]
    words += [f"{report['processors']} × {report['processor']}" if report.get("processor") else "", report.get("started", ""),
              f"commit {report['commit']}" if report.get("commit") else ""]
    title = f"Requests a second: {'null devices, which move no data' if nulls else image['title']}"
    return panels(title, ", ".join(word for word in words if word), subjects, jobs, lambda ident, job: [
        r["iops"] for r in found if r["subject"] == ident and r["job"] == job])


def laboratory_conditions(report):
    conditions = report["conditions"]
    words = [
        f"{conditions['rw']}, {size(conditions['blockSize'])}", "direct" if conditions["direct"] else "page cache",
        f"{conditions['rounds']} rounds of {conditions['slice']} s",
        f"Linux {conditions['kernel']}", f"{conditions['processors']} × {conditions['processor']}", conditions["started"],
        f"commit {conditions['commit']}" if conditions.get("commit") else "",
    ]
    return ", ".join(word for word in words if word)


def engines(report, nulls=False):
    return [row for row in report["rows"] if row["group"] == "engine" and not row.get("impossible")
            and is_null(row["id"]) == nulls]


def named(report):
    """The image's name for a title; that of a temporary file says nothing."""
    name = os.path.basename(report["conditions"]["image"])
    return "" if name.startswith("vmm-blk-bench-") else f": {name}"


def curves(report):
    """Latency against rate, a curve for each engine over all depths; points, so the axes are logarithmic."""
    figure, (mean, tail) = plot.subplots(1, 2, figsize=(12, 4.6), sharex=True)
    depths = set()
    for number, row in enumerate(engines(report)):
        colour, marker = style(row["id"], number)
        points = sorted((p for p in report["points"] if p["row"] == row["id"] and p.get("latency")), key=lambda p: p["depth"])
        for axes, name in ((mean, "50"), (tail, "99")):
            axes.plot([p["iops"] for p in points], [p["latency"][name] / 1000 for p in points], color=colour, marker=marker,
                      markersize=5, label=row["title"])
            samples = {}
            for sample in report["samples"]:
                if sample["row"] == row["id"] and sample.get("latency"):
                    samples.setdefault(sample["depth"], []).append(sample)
            # The rounds, as small points around their median.
            for found in samples.values():
                axes.plot([s["iops"] for s in found], [s["latency"][name] / 1000 for s in found], linestyle="none",
                          color=colour, marker=".", markersize=2.5, alpha=0.6)
        for point in points:
            if point["depth"] in (1, 32, 256):
                depths.add(point["depth"])
                mean.annotate(str(point["depth"]), (point["iops"], point["latency"]["50"] / 1000),
                              textcoords="offset points", xytext=(4, 4), fontsize=7)
    for axes, name in ((mean, "median"), (tail, "99th percentile")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("requests a second")
        axes.set_ylabel("microseconds")
        axes.set_title(f"{name} of latency", fontsize=9, loc="left")
    tail.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    head(figure, "Latency against rate" + named(report),
         laboratory_conditions(report) + ". Right and down is better; numbers are depths, dots are rounds.")
    return figure


def bars(report, groups, nulls=False):
    """CPU time for each request, and beside it the rate."""
    depth = report["mainDepth"]
    rows = [(row, point) for row in report["rows"] if row["group"] in groups and is_null(row["id"]) == nulls
            for point in report["points"] if point["row"] == row["id"] and point["depth"] == depth]
    if not rows:
        return None
    names = [row["title"] if row["group"] != "bare" else "bare: " + row["title"] for row, _ in rows]
    figure, (cost, rate) = plot.subplots(1, 2, figsize=(12, 0.8 + 0.3 * len(rows)), sharey=True)
    samples = [[s for s in report["samples"] if s["row"] == row["id"] and s["depth"] == depth] for row, _ in rows]
    subjects = [(row["id"], name) for (row, _), name in zip(rows, names)]
    rate_bars(rate, subjects, [[s["iops"] for s in found] for found in samples])
    rate_bars(cost, subjects, [[s["cpu"] for s in found if s.get("cpu") is not None] for found in samples])
    for place, (_, point) in enumerate(rows):
        if point.get("limit"):
            rate.plot([point["limit"]] * 2, [place - 0.45, place + 0.45], color="#D00000", linewidth=2)
    most = max([point.get("limit") or 0 for _, point in rows])
    rate.set_xlim(0, max(rate.get_xlim()[1], most * 1.05))
    cost.set_yticks(range(len(rows)), names)
    cost.set_xlabel("CPU time per request, microseconds")
    rate.set_xlabel("requests a second; red: limit")
    figure.tight_layout()
    head(figure, f"What a request costs at depth {depth}" + named(report),
         laboratory_conditions(report) + ". Bars are medians, whiskers all rounds.")
    return figure


def distribution(report):
    """The share of requests that take longer than each latency."""
    figure, axes = plot.subplots(figsize=(9, 4.6))
    depth = report["mainDepth"]
    for number, row in enumerate(engines(report)):
        colour, marker = style(row["id"], number)
        for point in report["points"]:
            if point["row"] != row["id"] or point["depth"] != depth or not point.get("latency"):
                continue
            curve = sorted((float(name), value) for name, value in point["latency"].items() if float(name) < 100)
            axes.plot([value / 1000 for _, value in curve], [100 - name for name, _ in curve], color=colour, marker=marker,
                      markersize=4, label=row["title"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("microseconds")
    axes.set_ylabel("percent of requests that take longer")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    head(figure, f"Distribution of latency at depth {depth}", laboratory_conditions(report))
    return figure


def save(figure, folder, name):
    if figure is not None:
        figure.savefig(os.path.join(folder, name + ".svg"), bbox_inches="tight", metadata={"Date": None})
        plot.close(figure)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder = sys.argv[1]
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        if "ratios" in report:
            for image in report["images"]:
                name = image["id"].replace("ext4-", "disk-")
                save(peers(report, image), folder, f"peers-{name}")
                save(peers(report, image, nulls=True), folder, f"peers-{name}-null")
        elif "rows" in report:
            save(curves(report), folder, "paths-curves")
        else:
            sys.exit(f"plots.py: {path} is not a file that this script can draw")


if __name__ == "__main__":
    main()
