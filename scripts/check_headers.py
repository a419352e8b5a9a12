#!/usr/bin/env python3
"""Checks what a compiler does not say about headers.

The compiler's part is the CMake target kvtier_header_check: it compiles every header alone, so a
header that leans on its includer breaks the build. This script checks that none was missed there
(BUILD_DIR holds compile_commands.json), that include guards follow from the path, and that each
header opens with a comment that says what it is.

    check_headers.py BUILD_DIR
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ["base", "kvcache", "compressor", "cuda", "store", "services", "tests", "bench"]


def guard_of(path):
    return "KVTIER_" + re.sub(r"[^A-Za-z0-9]", "_", path).upper() + "_"


def check_text(path, text):
    guard = guard_of(path)
    if not re.search(rf"^#ifndef {guard}\n#define {guard}$", text, re.MULTILINE):
        yield f"{path}: the include guard must be {guard}"
    if not text.startswith("//"):
        yield f"{path}: opens without a comment that says what it is"
    if re.search(r"^\s*using namespace ", text, re.MULTILINE):
        yield f"{path}: 'using namespace' reaches every includer"


def compiled_headers(build):
    database = pathlib.Path(build, "compile_commands.json")
    prefix = pathlib.Path(build, "header_check").resolve()
    compiled = set()
    for entry in json.loads(database.read_text(encoding="utf-8")):
        file = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if prefix in file.parents:
            compiled.add(file.relative_to(prefix).as_posix().removesuffix(".cc"))
    return compiled


def main():
    compiled = compiled_headers(sys.argv[1])
    errors = []
    count = 0
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.h")):
            if "compile_fail" in file.parts:
                continue
            count += 1
            path = file.relative_to(ROOT).as_posix()
            errors += check_text(path, file.read_text(encoding="utf-8"))
            if path not in compiled:
                errors.append(f"{path}: not compiled alone (cmake/Lint.cmake); configure again?")
    print("\n".join(errors) if errors else f"headers: {count} ok")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
