#!/usr/bin/env python3
"""Writes the manual pages of vmm-blk from the argument parser's own description of the program.

    vmm-blk --experimental-dump-help | manual.py VERSION DATE FOLDER
"""
import json
import sys
from pathlib import Path


def escape(text):
    """Escapes text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def paragraphs(text):
    """Filled text; indented lines stay as they are."""
    lines, literal = [], False
    for line in text.split("\n"):
        if line.startswith("  ") != literal and line.strip():
            literal = not literal
            lines.append(".RS 4\n.nf" if literal else ".fi\n.RE")
        if line.strip():
            lines.append(escape(line.strip() if not literal else line[2:].rstrip()))
        else:
            lines.append(".sp" if literal else ".PP")
    if literal:
        lines.append(".fi\n.RE")
    return lines


def name(argument):
    dashes = {"long": "--", "short": "-", "longWithSingleDash": "-"}
    return [dashes[item["kind"]] + item["name"] for item in argument.get("names", [])]


def shown(command):
    return [argument for argument in command.get("arguments", []) if argument.get("shouldDisplay", True)]


def options(command):
    lines, section = [], None
    for argument in shown(command):
        if argument.get("sectionTitle") != section:
            section = argument.get("sectionTitle")
            lines.append(f".SS {escape(section or 'Others')}")
        value = argument.get("valueName", "value")
        if argument["kind"] == "positional":
            head = f"\\fI{escape(value)}\\fP"
        else:
            head = ", ".join(f"\\fB{escape(word)}\\fP" for word in name(argument))
            if argument["kind"] == "option":
                head += f" \\fI{escape(value)}\\fP"
        text = argument.get("abstract", "")
        if argument.get("discussion"):
            text += "\n\n" + argument["discussion"]
        if argument.get("defaultValue") and argument["kind"] == "option":
            text += f" (default: {argument['defaultValue']})"
        lines += [".TP", head] + (paragraphs(text) or ["\\&"])
    return lines


def synopsis(path, command):
    words = [f"\\fB{escape(' '.join(path))}\\fP"]
    if command.get("subcommands"):
        words.append("\\fIcommand\\fP")
    for argument in shown(command):
        if argument["kind"] == "positional":
            words.append(f"\\fI{escape(argument.get('valueName', 'value'))}\\fP")
    return " ".join(words) + " [\\fIoptions\\fP]"


def page(path, command, others, version, date):
    title = "-".join(path)
    lines = [
        f'.TH "{title.upper()}" 1 "{date}" "{version}" "User Commands"',
        ".SH NAME",
        f"{escape(title)} \\- {escape(command.get('abstract', '').rstrip('.'))}",
        ".SH SYNOPSIS",
        synopsis(path, command),
    ]
    if command.get("discussion"):
        lines += [".SH DESCRIPTION"] + paragraphs(command["discussion"])
    if shown(command):
        lines += [".SH OPTIONS"] + options(command)
    children = [child for child in command.get("subcommands", []) if child["commandName"] != "help"]
    if children:
        lines.append(".SH COMMANDS")
        for child in children:
            lines += [".TP", f"\\fB{escape('-'.join(path + [child['commandName']]))}\\fP(1)", escape(child.get("abstract", ""))]
    if others:
        lines += [".SH SEE ALSO", ", ".join(f"\\fB{escape(other)}\\fP(1)" for other in others)]
    return title, "\n".join(lines) + "\n"


def write(path, command, parent, folder, version, date):
    children = [child for child in command.get("subcommands", []) if child["commandName"] != "help"]
    title, text = page(path, command, [parent] if parent else [], version, date)
    (folder / f"{title}.1").write_text(text)
    for child in children:
        write(path + [child["commandName"]], child, title, folder, version, date)


def main():
    version, date, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    command = json.load(sys.stdin)["command"]
    write([command["commandName"]], command, None, Path(folder), version, date)


main()
