"""Runs a program under callgrind, in parts, and reads each part's counts."""
import os
import re
import subprocess
import tempfile

COPY = re.compile(r"mem(cpy|move)|clinux_copy_")


class Part:
    """The counts inside the functions of interest in one part of the run."""

    def __init__(self, lines):
        self.calls, self.own = {}, {}
        names = {}
        function = callee = None
        is_call = False

        def named(text):
            number, _, name = text.strip().partition(" ")
            if name:
                names[number] = name
            return names.get(number, number)

        for line in lines:
            if line.startswith("fn="):
                function = named(line[3:])
            elif line.startswith("cfn="):
                callee = named(line[4:])
            elif line.startswith("calls="):
                count = int(line[6:].split()[0])
                is_call = True
            elif line[0] in "0123456789+-*" and function is not None:
                cost = int(line.split()[1])
                # The line after a call has the cost of what was called, which its own entry has, too. Without any it was
                # called outside of the functions of interest.
                if not is_call:
                    self.own[function] = self.own.get(function, 0) + cost
                elif cost:
                    self.calls[callee] = self.calls.get(callee, 0) + count
                is_call = False

    @property
    def instructions(self):
        """Without those of copies, which differ between CPUs."""
        return sum(count for name, count in self.own.items() if not COPY.search(name))

    def count(self, pattern):
        """Calls of functions whose names match."""
        return sum(count for name, count in self.calls.items() if re.search(pattern, name))


def count(program, toggle, end):
    """Counts inside functions whose names match `toggle`, one part for each time that `end` is reached; and the output's
    lines."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        out = os.path.join(folder, "out")
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--toggle-collect={toggle}",
             f"--dump-after={end}", *program],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if run.returncode != 0:
            raise SystemExit(f"callgrind: {' '.join(program)} failed:\n{run.stderr}")
        parts = []
        while os.path.exists(f"{out}.{len(parts) + 1}"):
            with open(f"{out}.{len(parts) + 1}") as lines:
                parts.append(Part(line for line in lines if line != "\n"))
        return parts, run.stdout.splitlines()
