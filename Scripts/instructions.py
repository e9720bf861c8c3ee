#!/usr/bin/python3
"""Instructions of each piece that ring-cost measures: a line with its name and the number per operation.

    Scripts/instructions.py | .build/release/ring-cost --instructions /dev/stdin
"""
import os
import sys

sys.dont_write_bytecode = True
import callgrind

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".build/release/ring-cost")


def main():
    if not os.path.exists(PROGRAM):
        sys.exit(f"instructions: there is no {PROGRAM}: build it with 'swift build -c release'")
    parts, lines = callgrind.count([PROGRAM, "--count"], "*measured*", "*pieceIsOver*")
    # A piece has two parts, of which the first warms up.
    for line, part in zip(lines, parts[1::2], strict=True):
        name, operations = line.split("\t")
        print(f"{name}\t{part.instructions / int(operations):.1f}")


if __name__ == "__main__":
    main()
