#!/usr/bin/env python3
"""Checks rules of text that no compiler knows. Errors fail; long files only get a warning, because
length is guidance (CONTRIBUTING.md).

    check_style.py [FILE...]   default: every file that git tracks, or would (not ignored)
    check_style.py --self-test
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = {".h", ".cc", ".cu", ".cuh"}
SCRIPTS = {".py", ".sh"}
LINES_MAX = 600
TEST_LINES_MAX = 800

# Pieces are joined so that this file does not break its own rules.
RULES = [
    # (applies to, pattern, message)
    # Documents may talk about the word.
    (lambda path: path.suffix != ".md", re.compile(r"TO" + r"DO(?!\(#\d+\))"), "a TO" "DO names its issue: TO" "DO(#12)"),
    (lambda path: True, re.compile(r"FIX" + r"ME|(?<!X)XX" + r"X\b"), "use TO" "DO(#issue)"),
    (lambda path: path.name != "Makefile", re.compile(r"\t"), "tab"),
    (lambda path: True, re.compile(r"[ \t]+$"), "white space at the end of the line"),
    # Home folders and working copies; not /tmp, /usr, /dev, /proc, /etc.
    (lambda path: True, re.compile(r"(?<![\w.$}/-])/(wo" r"rk|ro" r"ot|ho" r"me)\b"),
     "absolute path of one machine"),
    (lambda path: path.parts[0] == "tests",
     re.compile(r"\b(sleep_for|sleep_until|usleep|nanosleep)\s*\(|absl::SleepFor|time\.sleep\("),
     "tests wait for an event, never for a time"),
    (lambda path: path.parts[0] == "tests" and path.suffix in CODE | SCRIPTS,
     re.compile(r"^[^#/]*\bsleep[ (]+\d"), "tests wait for an event, never for a time"),
]


def errors_in(path, data):
    """Yields (line, message). `path` is relative to the root."""
    if b"\0" in data:
        return  # binary
    if b"\r" in data:
        yield 0, "line ends must be LF"
    if data and not data.endswith(b"\n"):
        yield 0, "no line end at the end of the file"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        yield 0, "not UTF-8"
        return
    for number, line in enumerate(text.split("\n"), 1):
        for applies, pattern, message in RULES:
            if applies(path) and pattern.search(line):
                yield number, message


def files_of_repository():
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    return [pathlib.Path(name.decode()) for name in names if name]


# Text that others wrote, byte-exact vectors and model data are kept as they are.
def exempt(path):
    return (path.parts[:2] == ("tests", "fixtures") or "corpus" in path.parts
            or "golden" in path.parts or path.suffix in {".safetensors", ".bin"}
            or (path.suffix == ".txt" and path.name != "CMakeLists.txt"))


SELF_TEST = [
    ("base/a.cc", b"int x;\n", True),
    ("base/a.cc", b"// TO" b"DO: later\n", False),
    ("base/a.cc", b"// TO" b"DO(#7): later\n", True),
    ("base/a.cc", b"mkdtemp(" + b"X" * 6 + b")\n", True),
    ("base/a.cc", b"\tint x;\n", False),
    ("base/a.cc", b"int x; \n", False),
    ("base/a.cc", b"int x;", False),
    ("base/a.cc", b"int x;\r\n", False),
    ("docs/a.md", b"run /wo" b"rk/main/x\n", False),
    ("docs/a.md", b"see /ro" b"ot/.cache\n", False),
    ("docs/a.md", b"a path such as docs/work/x and net" b"work/root\n", True),
    ("tests/unit/a_test.cc", b"std::this_thread::sleep_for(1s);\n", False),
    ("tests/unit/a_test.cc", b"  sleep(1);\n", False),
    ("tests/integration/run.sh", b"sleep 1\n", False),
    ("tests/unit/a_test.cc", b"// threads sleep 3 times\n", True),
    ("services/a.cc", b"clock.Sleep(1);\n", True),
]


def self_test():
    wrong = 0
    for path, data, clean in SELF_TEST:
        found = list(errors_in(pathlib.Path(path), data))
        if (not found) != clean:
            wrong += 1
            print(f"self-test: {path} {data!r}: clean={clean}, found {found}")
    print(f"self-test: {len(SELF_TEST)} cases, {wrong} wrong")
    return wrong


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    files = [pathlib.Path(name) for name in sys.argv[1:]] or files_of_repository()
    failed = False
    for path in files:
        full = ROOT / path
        if exempt(path) or not full.is_file() or full.is_symlink():
            continue
        data = full.read_bytes()
        for line, message in errors_in(path, data):
            failed = True
            print(f"{path}:{line}: {message}")
        lines = data.count(b"\n")
        limit = TEST_LINES_MAX if path.parts[0] == "tests" else LINES_MAX
        if path.suffix in CODE and lines > limit:
            print(f"{path}: warning: {lines} lines; do two things share a name?")
    if not failed:
        print(f"style: {len(files)} files ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
