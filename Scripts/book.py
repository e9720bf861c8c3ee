#!/usr/bin/env python3
"""Keeps the outputs in the documents up to date with the program, and builds the book from them.

    Scripts/book.py check [FILE.md …]    run every command again and compare; values that differ from run to run are masked
    Scripts/book.py update [FILE.md …]   run every command and write its output into the documents
    Scripts/book.py pictures             draw the traces in Docs/plots, and the picture of the engines
    Scripts/book.py html [FOLDER]        build HTML that reads offline (in .docs by default); needs pandoc

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
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
from symbols import MODULES, STYLE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.abspath(os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk")))
BLOCK = re.compile(r"<!-- run( \w+)?\n(.*?)\n-->\n```text\n(.*?)```\n", re.S)
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
    """What a block shows. - problems: where commands are told that ended with another status than 0."""
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
        # A server's output goes on while others say something.
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
    return found + [os.path.join(ROOT, "Docs/tracing.md")]


def work(path, updates):
    """- Returns: what is not as it should be."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    folder = tempfile.mkdtemp(prefix="book-")
    problems = []
    try:
        os.mkdir(os.path.join(folder, ".bin"))
        os.symlink(PROGRAM, os.path.join(folder, ".bin/vmm-blk"))
        # The example lies beside it.
        os.symlink(os.path.join(os.path.dirname(os.path.realpath(PROGRAM)), "toy-monitor"), os.path.join(folder, ".bin/toy-monitor"))

        def replace(match):
            kind, script, before = (match.group(1) or "").strip(), match.group(2), match.group(3)
            # Where the output is not compared, at least every command has to go well.
            after = run(script, folder, problems if kind == "any" else None)
            difference = list(difflib.unified_diff(masked(before, kind), masked(after, kind), "the document", "the program", lineterm=""))
            if difference:
                problems.append("\n".join(difference))
            return match.group(0).replace("```text\n" + before, "```text\n" + after) if updates and difference else match.group(0)

        result = BLOCK.sub(replace, text)
        if updates and result != text:
            with open(path, "w", encoding="utf-8") as file:
                file.write(result)
        return problems, len(BLOCK.findall(text))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Each question, what is so when the answer is yes, and below it the next one.
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


def pictures():
    """One read, and sixteen at a time, on a device that a memory file's driver keeps busy."""
    folder = tempfile.mkdtemp(prefix="book-")
    try:
        os.mkdir(os.path.join(folder, ".bin"))
        os.symlink(PROGRAM, os.path.join(folder, ".bin/vmm-blk"))
        plots = os.path.join(ROOT, "Docs/plots")
        with open(os.path.join(plots, "engines.svg"), "w", encoding="utf-8") as file:
            file.write(decision())
        for name, depth, count in [("one", 1, 1), ("many", 16, 16)]:
            run(f"""
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
    """Where to go from a page: the contents, and from a chapter the one before and the one after it."""
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
    for source, name in pages:
        text, title = texts[name], titles[name.split("/")[-1]]
        # A page is called by its title, and not by the name of a file that is not here.
        text = re.sub(r"\[(?:book/)?([\w-]+\.md)\]\(", lambda m: f"[{titles.get(m.group(1), m.group(1)).split(':')[0]}](", text)
        page = "index.html" if name == "book/README.md" else name[:-3] + ".html"
        if page == "index.html":
            text = re.sub(r"\]\((\d\d-[\w-]+)\.md", r"](book/\1.html", text)
            text = re.sub(r"\]\(\.\./([\w-]+)\.md", r"](\1.html", text)
            library = [f"[{module}](library/{module}.html)" for module in MODULES
                       if os.path.exists(os.path.join(folder, "library", module + ".html"))]
            if library:
                text += "\nThe public symbols of the libraries: " + ", ".join(library) + ".\n"
        else:
            text = text.replace("](README.md", "](../index.html")
            text = re.sub(r"\]\(((?:\.\./)*[\w-]+)\.md", r"](\1.html", text)
        # Sources are not part of the book.
        text = re.sub(r"\[([^]]*)\]\((?:\.\./)+(?:Sources|Tests|Scripts|Examples|Images|Benchmarks|CHANGELOG)[^)]*\)", r"\1", text)
        back = "" if page == "index.html" else neighbours(page, chapters)
        if name in chapters:
            text += "\n" + back
        subprocess.run(
            ["pandoc", "-f", "gfm", "-t", "html5", "-s", "--self-contained", "--metadata", f"pagetitle={title}",
             "--include-in-header", os.path.join(folder, "style.html"), "-o", os.path.join(folder, page)],
            input=back + text, text=True, check=True, cwd=os.path.dirname(source))
    os.remove(os.path.join(folder, "style.html"))
    print(f"{len(pages)} pages: {os.path.join(folder, 'index.html')}")


def main():
    verb, names = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if verb == "html":
        return html(names[0] if names else os.path.join(ROOT, ".docs"))
    if verb not in ("check", "update", "pictures"):
        sys.exit(__doc__)
    if not os.access(PROGRAM, os.X_OK):
        raise Failed(f"there is no {PROGRAM}: build it with 'swift build -c release', or name one in VMM_BLK")
    if verb == "pictures":
        return pictures()
    failed = blocks = 0
    for path in documents(names):
        problems, count = work(path, verb == "update")
        blocks += count
        for problem in problems:
            print(f"{os.path.relpath(path, ROOT)} {'is changed' if verb == 'update' else 'says something else'}:\n{problem}\n")
        failed += len(problems)
    print(f"{blocks - failed} passed, {failed} failed")
    if failed and verb == "check":
        sys.exit("Scripts/book.py update writes what the program says now: read the difference before keeping it")


try:
    main()
except Failed as error:
    sys.exit(f"book: {error}")
