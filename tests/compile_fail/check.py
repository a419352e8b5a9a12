#!/usr/bin/env python3
"""Compiles a file whose mistakes are marked `// error` and fails unless the compiler finds an error on
exactly those lines. Unmarked lines are the control: a missing header or a wrong flag is no success.

    check.py FILE COMPILER [FLAG...]
"""

import pathlib
import re
import subprocess
import sys


def main():
    file, *command = sys.argv[1:]
    marked = {number for number, line in enumerate(pathlib.Path(file).read_text().split("\n"), 1)
              if line.endswith("// error")}
    run = subprocess.run(command + ["-fsyntax-only", file], capture_output=True, text=True)
    found = {}
    for path, number, message in re.findall(r"^(.+?):(\d+):\d+: (?:fatal )?error: (.*)$",
                                            run.stderr, re.MULTILINE):
        found.setdefault((path == file, int(number)), message)
    expected = {(True, number) for number in marked}
    for _, number in sorted(expected - found.keys()):
        print(f"{file}:{number}: compiles, but must not")
    for here, number in sorted(found.keys() - expected):
        print(f"{file if here else 'an included file'}:{number}: {found[here, number]}")
    if not marked or run.returncode == 0 or found.keys() != expected:
        sys.exit(1)


main()
