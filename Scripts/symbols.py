#!/usr/bin/env python3
"""Writes a reference of the libraries' public symbols: a page for each module that reads offline.

    Scripts/symbols.py FOLDER                        extract the symbols of the built modules and write FOLDER/NAME.html
    Scripts/symbols.py --graphs GRAPHS FOLDER        use symbol graphs that are there: GRAPHS/NAME.symbols.json
    Scripts/symbols.py --markdown … FOLDER           write NAME.md instead, without pandoc

The symbols come from swift-symbolgraph-extract, which is part of the toolchain, and from the release build. DocC could render the
same graphs, but its pages fetch their data by scripts and stay blank when a browser opens them from a folder.
"""
import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULES = ["VirtioCore", "VirtioBlkDevice", "VirtioBlkMetrics"]
PURPOSE = {
    "VirtioCore": "Memory shared with a peer, rings over it, and the life cycle of a virtio device.",
    "VirtioBlkDevice": "The block device: options, images, engines, limits, metrics.",
    "VirtioBlkMetrics": "A device's figures through the API of swift-metrics.",
}
TYPES = ["swift.protocol", "swift.class", "swift.struct", "swift.enum", "swift.typealias"]
# Members of a type, in the order in which they are shown.
GROUPS = [
    ("Cases", ["swift.enum.case"]), ("Initializers", ["swift.init"]),
    ("Properties", ["swift.property", "swift.type.property", "swift.subscript", "swift.type.subscript"]),
    ("Methods", ["swift.method", "swift.type.method", "swift.func", "swift.func.op"]),
    ("Associated types", ["swift.associatedtype", "swift.typealias"]),
]


class Failed(Exception):
    pass


def extract(folder):
    """Writes the symbol graphs of the built modules."""
    modules = os.path.join(ROOT, ".build/release/Modules")
    if not os.path.exists(os.path.join(modules, MODULES[0] + ".swiftmodule")):
        raise Failed(f"there is no {MODULES[0]} in {modules}: build it with 'swift build -c release'")
    if not shutil.which("swift-symbolgraph-extract"):
        raise Failed("swift-symbolgraph-extract is missing: put the toolchain's usr/bin in PATH")
    target = json.loads(subprocess.run(["swift", "-print-target-info"], check=True, capture_output=True).stdout)["target"]["triple"]
    includes = [modules, os.path.join(ROOT, "Sources/CLinux")]
    includes += [os.path.dirname(path) for path in glob.glob(os.path.join(ROOT, ".build/checkouts/*/Sources/*/include/module.modulemap"))]
    for module in MODULES:
        command = ["swift-symbolgraph-extract", "-module-name", module, "-target", target, "-minimum-access-level", "public",
                   "-skip-synthesized-members", "-output-dir", folder]
        result = subprocess.run(command + [word for path in includes for word in ("-I", path)], capture_output=True, text=True)
        if result.returncode != 0:
            raise Failed(f"the symbols of {module} cannot be extracted:\n{result.stderr}")


def text(fragments):
    return "".join(fragment["spelling"] for fragment in fragments or [])


def anchor(path):
    return re.sub(r"[^\w.]+", "-", ".".join(path)).strip("-").lower()


class Module:
    def __init__(self, name, graphs):
        self.name = name
        # Extensions of other modules' types are in separate files.
        paths = [os.path.join(graphs, name + ".symbols.json")] + sorted(glob.glob(os.path.join(graphs, name + "@*.symbols.json")))
        if not os.path.exists(paths[0]):
            raise Failed(f"there is no {paths[0]}")
        self.symbols, self.parents, self.conforms = {}, {}, {}
        for path in paths:
            with open(path, encoding="utf-8") as file:
                graph = json.load(file)
            for symbol in graph["symbols"]:
                # The compiler adds one to every enum with raw values.
                if symbol["pathComponents"][-1] == "init(rawValue:)" and not symbol.get("location"):
                    continue
                self.symbols.setdefault(symbol["identifier"]["precise"], symbol)
            for relation in graph["relationships"]:
                if relation["kind"] in ("memberOf", "requirementOf"):
                    self.parents[relation["source"]] = relation["target"]
                elif relation["kind"] == "conformsTo" and relation.get("targetFallback"):
                    self.conforms.setdefault(relation["source"], []).append(relation["targetFallback"].split(".")[-1])
                elif relation["kind"] == "conformsTo" and relation["target"] in self.symbols:
                    self.conforms.setdefault(relation["source"], []).append(self.symbols[relation["target"]]["pathComponents"][-1])

    def uncommented(self):
        """Public declarations without a comment."""
        return sorted(".".join(symbol["pathComponents"]) for symbol in self.symbols.values() if not self.raw(symbol))

    def markdown(self):
        types = [s for s in self.symbols.values() if s["kind"]["identifier"] in TYPES[:4]]
        types.sort(key=lambda s: [part.lower() for part in s["pathComponents"]])
        self.links = {".".join(s["pathComponents"]): anchor(s["pathComponents"]) for s in types}
        lines = [f"# {self.name}", "", PURPOSE.get(self.name, ""), "", "| type | |", "|---|---|"]
        for symbol in types:
            path = ".".join(symbol["pathComponents"])
            lines.append(f"| [`{path}`](#{self.links[path]}) | {self.summary(symbol)} |")
        for symbol in types:
            lines += self.section(symbol)
        known = {s["identifier"]["precise"] for s in types}
        others = [s for key, s in self.symbols.items() if key not in known and self.parents.get(key) not in known]
        if others:
            lines += ["", "## Other declarations"]
            for symbol in sorted(others, key=lambda s: s["pathComponents"]):
                lines += self.member(symbol)
        return "\n".join(lines) + "\n"

    def section(self, symbol):
        path = symbol["pathComponents"]
        lines = ["", f'<a id="{anchor(path)}"></a>', "", f"## {'.'.join(path)}", "", "```swift", text(symbol.get("declarationFragments")), "```", ""]
        lines += self.comment(symbol)
        key = symbol["identifier"]["precise"]
        # Members that every value has are left out.
        conforms = sorted(set(self.conforms.get(key, [])) - {"Copyable", "Escapable", "SendableMetatype", "BitwiseCopyable"})
        if conforms:
            lines += ["", "Conforms to " + ", ".join(self.linked(f"`{name}`") for name in conforms) + "."]
        members = [s for k, s in self.symbols.items() if self.parents.get(k) == key]
        for title, kinds in GROUPS:
            group = [s for s in members if s["kind"]["identifier"] in kinds]
            if not group:
                continue
            lines += ["", f"**{title}**"]
            for member in sorted(group, key=self.place):
                lines += self.member(member)
        return lines

    @staticmethod
    def place(symbol):
        """The order in the source; symbols without a position come last."""
        location = symbol.get("location")
        return (location["uri"], location["position"]["line"]) if location else ("~", 0)

    def member(self, symbol):
        return ["", "```swift", text(symbol.get("declarationFragments")), "```", ""] + self.comment(symbol)

    def raw(self, symbol):
        comment = symbol.get("docComment", {})
        # The standard library's comments on protocol requirements do not describe this project's declarations.
        return [line["text"] for line in comment.get("lines", [])] if comment.get("module", self.name) in MODULES else []

    def comment(self, symbol):
        # A parameter or a return value may follow a sentence.
        return [re.sub(r"(?<=[.;:]) - (?=(?:Parameters?|Returns|Throws)\b)", "\n\n- ", self.linked(line)) for line in self.raw(symbol)]

    def summary(self, symbol):
        """The first sentence, on one line."""
        first = " ".join(" ".join(self.raw(symbol)).split(" - ")[0].split())
        sentence = re.match(r"(.*?\.)(\s|$)", first)
        return self.linked((sentence.group(1) if sentence else first).replace("|", "\\|"))

    def linked(self, line):
        def link(match):
            target = self.links.get(match.group(1))
            return f"[`{match.group(1)}`](#{target})" if target else match.group(0)
        return re.sub(r"(?<!\[)`([\w.]+)`", link, line)


def write(folder, graphs, plain):
    os.makedirs(folder, exist_ok=True)
    for name in MODULES:
        module = Module(name, graphs)
        page = module.markdown()
        if uncommented := module.uncommented():
            some = ", ".join(uncommented[:10]) + (", …" if len(uncommented) > 10 else "")
            print(f"{name}: {len(uncommented)} of {len(module.symbols)} symbols have no comment: {some}", file=sys.stderr)
        if plain:
            with open(os.path.join(folder, name + ".md"), "w", encoding="utf-8") as file:
                file.write(page)
            continue
        if not shutil.which("pandoc"):
            raise Failed("pandoc is missing: Scripts/setup.sh docs")
        header = os.path.join(folder, "style.html")
        with open(header, "w", encoding="utf-8") as file:
            # Long declarations are wrapped.
            file.write(f"<style>{STYLE}\npre code.sourceCode{{white-space:pre-wrap!important}}</style>")
        subprocess.run(
            ["pandoc", "-f", "gfm", "-t", "html5", "-s", "--self-contained", "--metadata", f"pagetitle={name}",
             "--include-in-header", header, "-o", os.path.join(folder, name + ".html")],
            input="[Contents](../index.html)\n\n" + page, text=True, check=True)
        os.remove(header)
    return [os.path.join(folder, name + (".md" if plain else ".html")) for name in MODULES]


# The book's pages use the same style. Long lines are wrapped, but drawings are scrolled where the window is narrow.
STYLE = """:root{color-scheme:light dark}
html,body{background:#fdfdfd;color:#222}body{max-width:58rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 sans-serif}
pre,pre.sourceCode{background:#f5f6f8!important;padding:.7rem;overflow-x:auto!important;font-size:12px;line-height:1.3}
code{font-size:.9em}pre code{font-size:1em}pre[data-lines] code{white-space:pre}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .4rem;text-align:left;vertical-align:top}
.long{overflow-wrap:anywhere}.word{white-space:nowrap}img{max-width:100%}a,a:visited{color:#06c}h1,h2,h3{line-height:1.2}
nav.pages{display:flex;justify-content:space-between;gap:1rem}
@media screen and (prefers-color-scheme:dark){html,body{background:#15171b;color:#d5d7db}a,a:visited{color:#78b4ff}
pre,pre.sourceCode{background:#20242a!important}td,th{border-color:#444a52}tbody{border-color:#777}
/* Pictures have a white ground of their own. */
img{filter:brightness(.88)}
code span{color:#9fc3ea!important}code span.kw,code span.cf,code span.bu{color:#8ccf8c!important}
code span.co,code span.do{color:#8fa3ad!important}code span.st,code span.ch,code span.dv,code span.fl{color:#e0b483!important}
code span.dt,code span.at{color:#d6c27a!important}code span.op{color:#b5b9bf!important}
code .word,code.long{color:inherit!important}}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--graphs", help="a folder with symbol graphs")
    parser.add_argument("--markdown", action="store_true", help="write Markdown instead of HTML")
    options = parser.parse_args()
    scratch = None
    try:
        if not options.graphs:
            scratch = tempfile.mkdtemp(prefix="symbols-")
            extract(scratch)
        for path in write(options.folder, options.graphs or scratch, options.markdown):
            print(path)
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"symbols: {error}")
