#!/usr/bin/env python3
"""Keeps the outputs in the documents up to date with the program, and builds the book from them.

    Scripts/book.py check [FILE.md …]    run every command again and compare; values that differ from run to run are masked
    Scripts/book.py links [FILE.md …]    follow every link of the documents; part of 'check' without a name
    Scripts/book.py update [FILE.md …]   run every command and write its output into the documents
    Scripts/book.py pictures             draw the traces in Docs/plots, and the picture of the engines
    Scripts/book.py html [FOLDER]        build HTML that reads offline (in .docs by default); needs pandoc
    Scripts/book.py pages [FOLDER]       follow every link of the HTML, and see that it loads nothing; part of 'html'
    Scripts/book.py package FOLDER       lay out the documents for a package, in which every link leads to what it ships

A block of output follows a comment with the commands that produce it:

    <!-- run
    @recipe read-write rw
    vmm-blk inspect rw.mem
    -->
    ```text
    $ vmm-blk inspect rw.mem
    …
    ```

Each line is a bash command. A line that starts with @ is run but not shown. All blocks of a document share a scratch folder.
`recipe NAME FILE` builds FILE.mem and FILE.img from Images/NAME.recipe; `serving FILE` waits for a server's line in FILE.
'run numbers' means that numbers differ from run to run, 'run any' that only the exit status of each command counts.

VMM_BLK names the program; the default is the release build.
"""
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from html.parser import HTMLParser

sys.dont_write_bytecode = True
from symbols import MODULES, STYLE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.abspath(os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk")))
BLOCK = re.compile(r"<!-- run( \w+)?\n(.*?)\n-->\n```text\n(.*?)```\n", re.S)
# Where a link leads; a title may follow.
TARGET = r"([^)\s]+)(?:\s+\"[^\"]*\")?"
LIMIT = 120  # seconds that one block may take

HELPERS = f"""
export LC_ALL=C.UTF-8 VMM_BLK_CONTROL=
recipe() {{ python3 {ROOT}/Images/build.py {ROOT}/Images/$1.recipe $2.mem $2.img; }}
serving() {{ for i in $(seq 1 3000); do grep -q Serving "$1" 2>/dev/null && return; sleep 0.02; done; echo "no server"; return 1; }}
stop() {{ kill "$@"; wait "$@" || true; }}
ROOT={ROOT}
"""

MASKS = [
    (re.compile(r"process \d+"), "process N"), (re.compile(r"\bseed \d+"), "seed N"),
    # Whether one call announces two answers depends on timing.
    (re.compile(r"│ doorbells .*"), "│ doorbells"),
    (re.compile(r"/tmp/\S+?/(?=[\w.]+)"), ""), (re.compile(r"\b\d+(\.\d+)? (ns|µs|ms|s)\b"), "T"),
]
NUMBERS = [(re.compile(r"\d+(\.\d+)?"), "N"), (re.compile(r"[ ─-]+"), " "), (re.compile(r"\b[NT]\b( [NT]\b)*"), "N")]


class Failed(Exception):
    pass


def run(script, folder, problems=None):
    """A block's output. - problems: receives the commands that ended with a status other than 0."""
    lines = [line for line in script.split("\n") if line.strip()]
    parts = [HELPERS, "set -o pipefail", f"cd '{folder}'"]
    for number, line in enumerate(lines):
        command = line.lstrip("@")
        if command.endswith("&"):
            parts.append(f"{{ {command[:-1].strip()}; }} >'{folder}/.out{number}' 2>&1 &")
        else:
            parts.append(f"{{ {command}; }} >'{folder}/.out{number}' 2>&1 || echo '{number} '$? >>'{folder}/.ends'")
    environment = dict(os.environ, PATH=os.path.join(folder, ".bin") + ":" + os.environ["PATH"], NO_COLOR="1")
    process = subprocess.Popen(["bash", "-c", "\n".join(parts)], cwd=folder, env=environment, start_new_session=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise Failed(f"this takes longer than {LIMIT} s:\n{script}")
    finally:
        # Whatever it left in the background ends with it.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    ends = os.path.join(folder, ".ends")
    if os.path.exists(ends):
        with open(ends, encoding="utf-8") as file:
            for number, status in (line.split() for line in file.read().splitlines()):
                if problems is not None:
                    with open(os.path.join(folder, f".out{number}"), encoding="utf-8") as output:
                        problems.append(f"'{lines[int(number)]}' ended with {status}:\n{output.read()}")
        os.remove(ends)
    shown = []
    for number, line in enumerate(lines):
        if line.startswith("@"):
            continue
        with open(os.path.join(folder, f".out{number}"), encoding="utf-8") as file:
            output = file.read()
        # A server may print while other commands do.
        if not line.endswith("&"):
            shown.append(f"$ {line}\n{output}".rstrip("\n"))
        else:
            shown.append(f"$ {line}")
    return "\n".join(line.rstrip() for line in "\n".join(shown).split("\n")) + "\n"


def masked(text, kind):
    for pattern, word in MASKS + (NUMBERS if kind == "numbers" else []):
        text = pattern.sub(word, text)
    if kind == "any":
        text = "\n".join(line for line in text.split("\n") if line.startswith("$ "))
    return [line.rstrip() for line in text.split("\n")]


def documents(names):
    if names:
        return names
    book = os.path.join(ROOT, "Docs/book")
    found = [os.path.join(book, name) for name in sorted(os.listdir(book)) if name.endswith(".md")]
    return found + [os.path.join(ROOT, "Docs", name) for name in ("images.md", "tracing.md", "zoned.md")]


def work(path, updates):
    """- Returns: the blocks whose output differs, the commands that failed although they must not, and the number of blocks."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    folder = tempfile.mkdtemp(prefix="book-")
    differences, failures = [], []
    try:
        os.mkdir(os.path.join(folder, ".bin"))
        os.symlink(PROGRAM, os.path.join(folder, ".bin/vmm-blk"))
        # The example is beside it.
        os.symlink(os.path.join(os.path.dirname(os.path.realpath(PROGRAM)), "toy-monitor"), os.path.join(folder, ".bin/toy-monitor"))

        def replace(match):
            kind, script, before = (match.group(1) or "").strip(), match.group(2), match.group(3)
            # Where the output is not compared, at least every command has to succeed.
            failed = []
            after = run(script, folder, failed if kind == "any" else None)
            if failed:
                failures.extend(failed)
                return match.group(0)
            difference = list(difflib.unified_diff(masked(before, kind), masked(after, kind), "the document", "the program", lineterm=""))
            if difference:
                differences.append("\n".join(difference))
            return match.group(0).replace("```text\n" + before, "```text\n" + after) if updates and difference else match.group(0)

        result = BLOCK.sub(replace, text)
        if updates and result != text:
            with open(path, "w", encoding="utf-8") as file:
                file.write(result)
        return differences, failures, len(BLOCK.findall(text))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def anchors(text):
    """The anchors of a document's headings, as GitHub and pandoc make them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)", text, re.M):
        word = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        # The second of the same name has -1 appended.
        name, number = word, 0
        while name in found:
            number += 1
            name = f"{word}-{number}"
        found.add(name)
    return found


def has_place(path, fragment):
    """Whether a link may end with the fragment: a heading of a document, or lines of another file, in GitHub's syntax."""
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if path.endswith(".md"):
        return fragment in anchors(text)
    lines = re.fullmatch(r"L(\d+)(?:-L(\d+))?", fragment)
    return bool(lines) and all(1 <= int(line) <= text.count("\n") + 1 for line in lines.groups() if line)


def everything():
    """All documents of the project."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if name.endswith(".md"))


def links(names):
    """- Throws: if a link leads to no file, or to no heading of one."""
    dead = []
    for path in names or sorted(everything()):
        with open(path, encoding="utf-8") as file:
            text = re.sub(r"^```.*?^```$", "", file.read(), flags=re.M | re.S)
        for target in re.findall(r"\]\(" + TARGET + r"\)", re.sub(r"`[^`\n]*`", "", text)):
            if re.match(r"\w+:", target):
                continue
            name, _, fragment = target.partition("#")
            found = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
            if not os.path.exists(found):
                dead.append(f"{os.path.relpath(path, ROOT)}: there is no {target}")
            elif fragment and not has_place(found, fragment):
                dead.append(f"{os.path.relpath(path, ROOT)}: there is no heading for {target}")
    if dead:
        raise Failed("dead links:\n" + "\n".join(dead))


class Page(HTMLParser):
    """A page's links, what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.names = [], [], set()
        with open(path, encoding="utf-8") as file:
            text = file.read()
        # A style may load something, too.
        self.loads += re.findall(r"url\(['\"]?([^)'\"]+)", "".join(re.findall(r"<style.*?</style>", text, re.S)))
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a":
            self.links += [attributes["href"]] if "href" in attributes else []
        else:
            self.loads += [attributes[key] for key in ("src", "href", "data", "xlink:href") if attributes.get(key)]


def check_pages(folder, names=None):
    """Checks that every link of the built pages leads to a page and an anchor in it, and that pages load nothing.

    - names: the pages; all in the folder if there are none.
    """
    if names is None:
        names = [os.path.relpath(os.path.join(place, name), folder) for place, _, files in os.walk(folder)
                 for name in files if name.endswith(".html")]
    if not names:
        raise Failed(f"there are no pages in {folder}: Scripts/book.py html {folder} builds them")
    pages = {path: Page(path) for path in (os.path.normpath(os.path.join(folder, name)) for name in names)}
    wrong = []
    for path, page in sorted(pages.items()):
        name = os.path.relpath(path, folder)
        wrong += [f"{name} loads {target}" for target in page.loads if not target.startswith(("data:", "#"))]
        for target in page.links:
            if re.match(r"(https?|mailto):", target):
                continue
            file, _, fragment = urllib.parse.unquote(target).partition("#")
            found = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
            if found not in pages:
                wrong.append(f"{name}: there is no {target}")
            elif fragment and fragment not in pages[found].names:
                wrong.append(f"{name}: there is no place for {target}")
    if wrong:
        raise Failed("the pages have dead links, or load something:\n" + "\n".join(wrong))


# Each question with its result for yes; for no, the next one follows.
DECISION = [
    ("Is the image an export of an NBD server?", "nbd", "one connection per thread, if the server allows it"),
    ("Is it an image of a Ceph cluster?", "rbd", "one handle of librbd for all threads"),
    ("Is it a qcow2 image?", "threads, sync", "sync if all its files are in memory"),
    ("Is it a file in memory (tmpfs, hugetlbfs)?", "mapped", "copies; plain calls (sync) if it cannot be mapped"),
    ("Is it a block device in memory (zram, RAM disk)?", "sync", "system calls in the queue's own thread"),
    ("Is io_uring forbidden, or out of memory?", "aio, sync", "libaio with O_DIRECT, else plain calls; logged once"),
    ("Is it in the page cache, and can it be mapped?", "cached", "copies of cached data, io_uring for the rest"),
    ("Otherwise", "uring", "a medium that can block: a turn is one system call"),
]


def decision():
    """What --engine auto does (EngineChoice.swift), as a picture."""
    parts = []
    for number, (question, engine, why) in enumerate(DECISION):
        y = 20 + number * 62
        parts.append(f'<rect x="10" y="{y}" width="390" height="40" rx="6" class="q"/><text x="24" y="{y + 25}">{question}</text>')
        parts.append(f'<line x1="400" y1="{y + 20}" x2="466" y2="{y + 20}" class="l" marker-end="url(#a)"/>')
        if number < len(DECISION) - 1:
            parts.append(f'<text x="418" y="{y + 14}" class="s">yes</text>')
            parts.append(f'<line x1="205" y1="{y + 40}" x2="205" y2="{y + 60}" class="l" marker-end="url(#a)"/>')
            parts.append(f'<text x="212" y="{y + 55}" class="s">no</text>')
        parts.append(f'<rect x="470" y="{y}" width="100" height="40" rx="6" class="e"/><text x="520" y="{y + 25}" class="n">{engine}</text>')
        parts.append(f'<text x="582" y="{y + 25}" class="s">{why}</text>')
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {20 + len(DECISION) * 62}" font-family="sans-serif" font-size="13">
<style>.q{{fill:#eef3f9;stroke:#4c78a8}}.e{{fill:#e9f4e7;stroke:#59a14f}}.l{{stroke:#555}}.s{{font-size:12px;fill:#444}}.n{{text-anchor:middle;font-weight:bold}}</style>
<defs><marker id="a" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>
{chr(10).join(parts)}
</svg>
"""


# How much rounds may differ for a picture: from slowest to fastest, as a fraction of the median.
STEADY = 0.5
# The laboratory's rows, and what is shown of them.
WAITING = [("wait-sleep", "sleep"), ("wait-poll-50", "poll:50"), ("wait-adaptive-50", "adaptive:50"), ("wait-busy", "busy")]
MEASURED = [("kicks per request", lambda point: point["kicks"]), ("median latency, µs", lambda point: point["latency"]["50"] / 1000),
            ("CPU time per request, µs", lambda point: point["cpu"])]


def waiting(results):
    """The laboratory's results on waiting modes, one request at a time: a panel for each figure."""
    conditions = results["conditions"]
    points = {point["row"]: point for point in results["points"] if point["depth"] == 1}
    parts = []
    for panel, (title, figure) in enumerate(MEASURED):
        x = 110 + panel * 285
        largest = max(figure(points[row]) for row, _ in WAITING) or 1
        parts.append(f'<text x="{x}" y="24" class="t">{title}</text>')
        for number, (row, name) in enumerate(WAITING):
            y, value = 38 + number * 30, figure(points[row])
            if panel == 0:
                parts.append(f'<text x="{x - 8}" y="{y + 15}" class="n">{name}</text>')
            width = max(1, round(value / largest * 190))
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="20" class="b"/>')
            parts.append(f'<text x="{x + width + 6}" y="{y + 15}">{value:.2f}</text>')
    where = f'{conditions["processors"]} × {conditions["processor"]}, Linux {conditions["kernel"]}, {conditions["started"][:10]}'
    spread = max(points[row]["spread"] or 0 for row, _ in WAITING)
    parts.append(f'<text x="10" y="176" class="s">vmm-blk bench --paths --groups waiting, depth 1, engine {conditions["engine"]}, an image in the page cache; medians of {conditions["rounds"]} rounds, which differ by up to {spread:.0%}; {where}</text>')
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -30 960 220" font-family="sans-serif" font-size="13">
<style>.b{{fill:#4c78a8}}.t{{font-weight:bold}}.n{{text-anchor:end}}.s{{font-size:11px;fill:#555}}</style>
<rect y="-30" width="100%" height="100%" fill="#fff"/>
<text x="10" y="-8" font-size="15" class="t">What ways of waiting cost, one request at a time</text>
{chr(10).join(parts)}
</svg>
"""


def run_all(script, folder):
    """- Throws: if a command fails that is not in the background."""
    problems = []
    run(script, folder, problems)
    if problems:
        raise Failed("\n".join(problems))


def pictures():
    """One read, and sixteen at a time, on a device that a memory file's driver keeps busy; and waiting modes."""
    folder = tempfile.mkdtemp(prefix="book-")
    try:
        os.mkdir(os.path.join(folder, ".bin"))
        os.symlink(PROGRAM, os.path.join(folder, ".bin/vmm-blk"))
        plots = os.path.join(ROOT, "Docs/plots")
        run_all("""
head -c 64M /dev/urandom >lab.img
timeout 60 vmm-blk bench --blk-file lab.img --direct off --paths --groups waiting --depths 1 --rounds 5 --slice 0.3 --output lab
""", folder)
        with open(os.path.join(folder, "lab/paths.json"), encoding="utf-8") as file:
            results = json.load(file)
        picture = os.path.join(plots, "waiting.svg")
        # Waking a thread takes several times as long on a busy machine, and then rounds differ.
        spread = max(point["spread"] or 0 for point in results["points"] if point["depth"] == 1 and point["row"] in dict(WAITING))
        if spread < STEADY or not os.path.exists(picture):
            with open(picture, "w", encoding="utf-8") as file:
                file.write(waiting(results))
        else:
            print(f"{os.path.relpath(picture, ROOT)} stays as it is: this machine is busy, rounds differ by {spread:.0%}")
        with open(os.path.join(plots, "engines.svg"), "w", encoding="utf-8") as file:
            file.write(decision())
        for name, depth, count in [("one", 1, 1), ("many", 16, 16)]:
            run_all(f"""
truncate -s 64M disk.img
@vmm-blk run --memory {name}.mem --create 64M --blk-file disk.img --engine uring --control {name}.ctl >{name}.log &
serving {name}.log
@timeout 20 vmm-blk bench --memory {name}.mem --iodepth {depth} --runtime 3 --ramp_time 0 &
sleep 1
timeout 20 vmm-blk trace --control {name}.ctl --seconds 0.2 --picture {plots}/trace-{name}.svg --picture-requests {count}
""", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def neighbours(page, chapters):
    """A page's navigation: the contents, and for a chapter the previous and the next one."""
    if "/" not in page:
        return "[Contents](index.html)\n\n"
    at = chapters.index(page[:-5] + ".md")
    spans = []
    for number in (at - 1, None, at + 1):
        if number is None:
            spans.append('<a href="../index.html">Contents</a>')
        elif 0 <= number < len(chapters):
            target = chapters[number].split("/")[1][:-3]
            label = int(target.split("-")[0])
            spans.append(f'<a href="{target}.html">' + (f"← Chapter {label}" if number < at else f"Chapter {label} →") + "</a>")
        else:
            spans.append("<span></span>")
    return '<nav class="pages">' + "".join(spans) + "</nav>\n\n"


OPTION, KEPT = r"(?<![\w-])--?\w[\w-]*", r'<span class="word">\g<0></span>'


def unbroken(page):
    """Keeps a word on one line, where a browser would break it after a hyphen; text that is too long for a column may break.
    Blocks whose lines make a picture or a table are marked."""
    def code(match):
        block, text = match.groups()
        if block:
            is_picture = re.search(r"[─│┐]|\+--|  \d+ ", text)
            return match.group(0).replace("<pre", '<pre data-lines="keep"', 1) if is_picture else match.group(0)
        if len(text) <= 24:
            whole = " " not in text
            return f'<code class="word">{text}</code>' if whole else "<code>" + re.sub(OPTION, KEPT, text) + "</code>"
        # It may break between the parts of a path or of a filter, and anywhere if a part is very long.
        longest = max(map(len, re.split(r"[\s|/,]", text)))
        text = re.sub(OPTION, KEPT, re.sub(r"(?<=[|/,])(?=\w)", "<wbr/>", text))
        return f'<code class="long">{text}</code>' if longest > 32 else f"<code>{text}</code>"

    return re.sub(r"(<pre[^>]*>)?<code>([^<]*)</code>", code, page)


def html(folder):
    if not shutil.which("pandoc"):
        raise Failed("pandoc is missing: Scripts/setup.sh docs")
    os.makedirs(os.path.join(folder, "book"), exist_ok=True)
    with open(os.path.join(folder, "style.html"), "w", encoding="utf-8") as file:
        file.write(f"<style>{STYLE}</style>")
    docs = os.path.join(ROOT, "Docs")
    pages = [(os.path.join(docs, name), name) for name in sorted(os.listdir(docs)) if name.endswith(".md")]
    pages += [(os.path.join(docs, "book", name), "book/" + name) for name in sorted(os.listdir(os.path.join(docs, "book")))
              if name.endswith(".md")]
    texts = {}
    for source, name in pages:
        with open(source, encoding="utf-8") as file:
            texts[name] = re.sub(r"<!-- run.*?-->\n", "", file.read(), flags=re.S)
    titles = {name.split("/")[-1]: re.search(r"^# (.*)", text, re.M).group(1) for name, text in texts.items()}
    chapters = [name for name in sorted(texts) if re.match(r"book/\d", name)]
    place = {name: "index.html" if name == "book/README.md" else name[:-3] + ".html" for name in texts}
    library = [module for module in MODULES if os.path.exists(os.path.join(folder, "library", module + ".html"))]
    for source, name in pages:
        text, title, page = texts[name], titles[name.split("/")[-1]], place[name]

        def link(match):
            """A link between documents becomes one between pages. A file outside the book is only named."""
            label, target = match.groups()
            if re.match(r"\w+:|#", target):
                return match.group(0)
            file, _, fragment = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(name), file))
            to = place.get(path)
            if to is None:
                # Its path in the project shows when the pointer rests on it.
                return f'<span title="{os.path.normpath(os.path.join("Docs", path))}">{label}</span>'
            # A page is called by its title, not by the name of a file that is not in the book.
            if re.fullmatch(r"(?:book/)?[\w-]+\.md", label):
                label = titles[label.split("/")[-1]].split(":")[0]
            return f"[{label}]({os.path.relpath(to, os.path.dirname(page) or '.')}" + (f"#{fragment})" if fragment else ")")

        text = re.sub(r"(?<!!)\[([^]]*)\]\(" + TARGET + r"\)", link, text)
        if page == "index.html":
            if library:
                references = ", ".join(f"[{module}](library/{module}.html)" for module in library)
                text += f"\nThe public symbols of the libraries: {references}.\n"
        back = "" if page == "index.html" else neighbours(page, chapters)
        if name in chapters:
            text += "\n" + back
        made = subprocess.run(
            ["pandoc", "-f", "gfm", "-t", "html5", "-s", "--self-contained", "--metadata", f"pagetitle={title}",
             "--include-in-header", os.path.join(folder, "style.html")],
            input=back + text, stdout=subprocess.PIPE, text=True, check=True, cwd=os.path.dirname(source))
        with open(os.path.join(folder, page), "w", encoding="utf-8") as file:
            file.write(unbroken(made.stdout))
    os.remove(os.path.join(folder, "style.html"))
    # Pages of an earlier build whose documents have been renamed are not part of this one.
    check_pages(folder, [*place.values(), *(f"library/{module}.html" for module in library)])
    print(f"{len(pages)} pages: {os.path.join(folder, 'index.html')}")


# Where a package has files that are elsewhere in the project. The documents and their pictures keep their places.
PACKAGED = {"CHANGELOG.md": "changelog.gz", "LICENSE": "copyright", "Examples/driver.py": "examples/driver.py",
            "packaging/domain.xml": "examples/domain.xml", "packaging/example.json": "examples/example.json"}


def package(folder):
    """Copies the documents. Links to files that a package has elsewhere lead there; others (sources) are only named."""
    pages = ["README.md"] + [os.path.relpath(os.path.join(place, name), ROOT)
                             for place, _, names in os.walk(os.path.join(ROOT, "Docs")) for name in names]
    for page in pages:
        source, copy = os.path.join(ROOT, page), os.path.join(folder, page)
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        if not page.endswith(".md"):
            shutil.copyfile(source, copy)
            continue

        def link(match):
            label, target = match.groups()
            if re.match(r"\w+:|#", target):
                return match.group(0)
            file, _, fragment = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(page), file))
            if path in pages:
                return match.group(0)
            to = PACKAGED.get(path)
            return f"[{label}]({os.path.relpath(to, os.path.dirname(page) or '.')})" if to else label

        with open(source, encoding="utf-8") as file:
            text = file.read()
        with open(copy, "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?<!!)\[([^]]*)\]\(" + TARGET + r"\)", link, text))


def main():
    verb, names = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if verb == "html":
        return html(names[0] if names else os.path.join(ROOT, ".docs"))
    if verb == "pages":
        return check_pages(names[0] if names else os.path.join(ROOT, ".docs"))
    if verb == "links":
        return links(names)
    if verb == "package" and names:
        return package(names[0])
    if verb not in ("check", "update", "pictures"):
        sys.exit(__doc__)
    if not os.access(PROGRAM, os.X_OK):
        raise Failed(f"there is no {PROGRAM}: build it with 'swift build -c release', or name one in VMM_BLK")
    if verb == "pictures":
        return pictures()
    if verb == "check" and not names:
        links([])
    changed = failed = blocks = 0
    for path in documents(names):
        differences, failures, count = work(path, verb == "update")
        blocks, changed, failed = blocks + count, changed + len(differences), failed + len(failures)
        for difference in differences:
            print(f"{os.path.relpath(path, ROOT)} {'is changed' if verb == 'update' else 'says something else'}:\n{difference}\n")
        for failure in failures:
            print(f"{os.path.relpath(path, ROOT)}: {failure}\n")
    failing = f", {failed} {'command' if failed == 1 else 'commands'} failed" if failed else ""
    if verb == "update":
        print(f"{blocks} blocks, {changed} changed{failing}")
        return 1 if failed else 0
    print(f"{blocks} blocks, {changed} say something else{failing}" if changed or failed else f"{blocks} passed")
    if changed:
        sys.exit("Scripts/book.py update writes what the program says now: read the difference before keeping it")
    return 1 if failed else 0


try:
    sys.exit(main())
except Failed as error:
    sys.exit(f"book: {error}")
