#!/usr/bin/env python3
"""Runs kvtier-codecs, as docs/performance.md does, on a short document and a few questions.

    codecs_command_test.py BIN_DIR

Every table must be there with a row per codec; codes are as much smaller as their formats say, and the
answers of raw rows are right. Speed is not judged here.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "tests/fixtures/model"
DOCUMENT = "tests/fixtures/documents/orchard.conf"
QUESTIONS = 4


def run(bin_dir, program, *arguments):
    done = subprocess.run([pathlib.Path(bin_dir, program), *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout, done.stderr


def rows_of(table):
    """{first word: the numbers after it} of the lines of one table that have numbers."""
    rows = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) > 1 and re.fullmatch(r"[\d.]+x?", words[1]):
            rows[words[0]] = [float(word.rstrip("x")) for word in words[1:] if word != "of"]
    return rows


def check(output):
    tables = output.split("\n\n")
    assert len(tables) == 4, output
    sizes, speeds, lossless, attention = (rows_of(table) for table in tables)
    assert list(sizes) == ["raw", "int8", "int4"], sizes
    for codec, (stored, right, asked) in sizes.items():
        assert asked == QUESTIONS and right <= asked, (codec, right, asked)
        assert stored < sizes["raw"][0] * {"raw": 1.01, "int8": 0.6, "int4": 0.35}[codec], sizes
    assert sizes["raw"][1] >= QUESTIONS - 1, sizes
    assert list(speeds) == ["int8", "int4"] and list(attention) == ["raw", "int8", "int4"], (speeds, attention)
    assert list(lossless) == ["-1", "1", "3", "9"], lossless
    for rows in (speeds, lossless, attention):
        for numbers in rows.values():
            assert len(numbers) == 3 and all(number > 0 for number in numbers), rows


def main():
    bin_dir = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        questions = pathlib.Path(name, "questions.json")
        status, _, error = run(bin_dir, "kvtier-eval", "questions", f"--model={MODEL}", f"--document={DOCUMENT}",
                               f"--count={QUESTIONS}", "--seed=1", f"--out={questions}")
        assert status == 0, error
        status, output, error = run(bin_dir, "kvtier-codecs", MODEL, DOCUMENT, questions)
        print(output, error)
        assert status == 0, error
        check(output)
        status, _, error = run(bin_dir, "kvtier-codecs", MODEL, DOCUMENT)
        assert status == 2 and "usage: kvtier-codecs" in error, (status, error)
        status, _, error = run(bin_dir, "kvtier-codecs", MODEL, f"{name}/none", questions)
        assert status == 1 and f"cannot read {name}/none" in error, (status, error)
    print("codecs command: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
