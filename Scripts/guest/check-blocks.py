#!/usr/bin/python3
"""Checks that every block that a guest reported as written is in the disk image.

check-blocks.py IMAGE CONSOLE-LOG [MINIMUM]

The guest's scenario `numbered` writes block N at N * 4096 and prints "ACK N".
"""

import re
import sys

BLOCK = 4096


def main(image_path: str, log_path: str, minimum: int = 1) -> int:
    with open(log_path, "rb") as log:
        # An incomplete line, printed when the guest was stopped, does not count.
        numbers = [int(n) for n in re.findall(rb"(?m)^ACK (\d+)[\r\n]", log.read())]
    wrong = []
    with open(image_path, "rb") as image:
        for number in numbers:
            image.seek(number * BLOCK)
            if image.read(BLOCK) != b"%-4095s\n" % (b"block %d" % number):
                wrong.append(number)
    print(f"{len(numbers)} blocks acknowledged, {len(wrong)} of them missing in the image")
    if wrong:
        print("missing:", *wrong[:20], "…" if len(wrong) > 20 else "")
    if len(numbers) < minimum:
        print(f"the console shows fewer than the {minimum} expected")
    return 1 if wrong or len(numbers) < minimum else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3], *map(int, sys.argv[3:4])))
