#!/usr/bin/env python3
"""Checks that the commands in our documents exist.

Every ```bash block of README.md, CONTRIBUTING.md, CHANGELOG.md, docs/, cuda/, clients/ and
deploy/ is read.
In each command the program must be a script of this repository, a program that our CMake files build
(build/<preset>/bin/NAME, or NAME alone), or an ordinary tool listed below; further words that look
like a path of ours must exist.

    check_docs.py [BUILD_DIR]    default build/dev; its programs.txt, written by cmake, lists programs
    check_docs.py --self-test
"""

import json
import pathlib
import re
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

TOOLS = {"cat", "cd", "cmake", "ctest", "curl", "docker", "echo", "export", "git", "jq", "kill",
         "kubectl", "ls", "mkdir", "openssl", "python3", "rm", "sudo", "taskset", "time", "wait"}
OURS = re.compile(r"(\./)?(scripts|\.ci|build|docs|tests|deploy|bench|clients|proto)/")
PLACEHOLDER = re.compile(r"[<>*$\[\]]|\.\.\.|\b(FILE|FOLDER|NAME|TARGET)\b")


def programs(build):
    return set(pathlib.Path(build, "programs.txt").read_text(encoding="utf-8").split())


def presets():
    data = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
    return {preset["name"] for preset in data["configurePresets"] if not preset.get("hidden")}


def blocks(text):
    """Yields (line number, text) of each fenced bash block."""
    for match in re.finditer(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)) + 1, match.group(1)


def commands(block):
    """Yields (line offset, words) for each simple command; continued lines count as their first."""
    joined = re.sub(r"\\\n", lambda match: " \x01", block)
    extra = 0
    for offset, line in enumerate(joined.split("\n")):
        here = offset + extra
        extra += line.count("\x01")
        lexer = shlex.shlex(line.replace("\x01", " "), posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = []
        for word in list(lexer) + [";"]:
            if set(word) <= set(";|&"):
                while words and re.match(r"(\w+=|\$$)", words[0]):
                    words.pop(0)  # environment, prompt
                if words:
                    yield here, words
                words = []
            else:
                words.append(word)


def path_error(word, known_programs, known_presets):
    word = word.removeprefix("./")
    match = re.match(r"build/([\w-]+)/bin/([\w-]+)$", word)
    if match:
        if match.group(1) not in known_presets:
            return f"{word}: no preset {match.group(1)}"
        return None if match.group(2) in known_programs else f"{word}: no such program is built"
    if word.startswith("build/"):
        return None  # what the build leaves there is not known before it
    return None if (ROOT / word).exists() else f"{word}: no such file"


def errors_in(text, known_programs, known_presets):
    for first, block in blocks(text):
        for offset, words in commands(block):
            if words[0] in {"sudo", "time"} and len(words) > 1:
                words = words[1:]
            program = words[0]
            if not (program in TOOLS or program in known_programs or OURS.match(program)):
                yield first + offset, f"{program}: unknown command"
            for word in words:
                if OURS.match(word) and not PLACEHOLDER.search(word):
                    error = path_error(word, known_programs, known_presets)
                    if error:
                        yield first + offset, error


def self_test():
    cases = [
        ("scripts/build.sh dev\n", []),
        ("scripts/nothing.sh dev  # no\n", [1]),
        ("FOO=1 scripts/test.sh && build/dev/bin/kvtierctl ls | jq .\n", []),
        ("build/dev/bin/nothing\nls\nbuild/other/bin/kvtierctl\n", [1, 3]),
        ("kvtierctl ls \\\n  --json\nfrobnicate\n", [3]),
        ("ls docs/nothing.md\n", [1]),
        ("build/<preset>/bin/NAME\n", []),
    ]
    wrong = 0
    for block, expected in cases:
        text = "```bash\n" + block + "```\n"
        found = [line - 1 for line, _ in errors_in(text, {"kvtierctl"}, {"dev"})]
        if found != expected:
            wrong += 1
            print(f"self-test: {block!r}: expected errors at {expected}, got {found}")
    print(f"self-test: {len(cases)} cases, {wrong} wrong")
    return wrong


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for folder in ("docs", "cuda", "clients", "deploy"):
        files += sorted((ROOT / folder).rglob("*.md"))
    build = sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "dev"
    known_programs = programs(build)
    known_presets = presets()
    errors = []
    for file in files:
        if file.exists():
            text = file.read_text(encoding="utf-8")
            for line, message in errors_in(text, known_programs, known_presets):
                errors.append(f"{file.relative_to(ROOT)}:{line}: {message}")
    print("\n".join(errors) if errors else "docs: every command exists")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
