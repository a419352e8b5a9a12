#!/usr/bin/env python3
"""Runs kvtier-eval quality --quick with the programs of one build, on committed texts.

    quality_command_test.py BIN_DIR

Every task, method and setting must be there with an interval around its score; at ratio 0.3 KVzip
answers what the full cache answers; the report of the saved answers is the report of the run; bad
command lines are refused with the reason.
"""

import csv
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = {"key_value", "prefix_suffix", "needle", "multi_hop", "repeat", "redundant"}
BASELINES = {"snapkv", "pyramidkv", "h2o", "sink_recent", "random"}


def run(bin_dir, *arguments):
    done = subprocess.run([pathlib.Path(bin_dir, "kvtier-eval"), *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout, done.stderr


def check_rows(rows):
    cells = {}
    for row in rows:
        key = (row["task"], row["method"], row["ratio"], row["setting"], row["codec"], row["origin"])
        assert key not in cells, f"twice: {key}"
        cells[key] = row
        assert 0 <= row["low"] <= row["score"] <= row["high"] <= 1, row
        assert row["minus_full_low"] <= row["minus_full"] <= row["minus_full_high"], row
        assert row["samples"] >= 24, row
    for task in TASKS:
        for setting in ("shared", "per_query"):
            full = cells[task, "full", 1.0, setting, "raw", "full"]
            assert full["score"] >= 0.95, full
            kvzip = [r for r in rows if r["task"] == task and r["method"] == "kvzip" and r["ratio"] == 0.3 and
                     r["setting"] == setting and r["codec"] == "raw"]
            assert kvzip and all(abs(r["minus_full"]) <= 0.05 for r in kvzip), kvzip
            for method in BASELINES:
                assert (task, method, 0.3, setting, "raw", "selected") in cells, (task, method, setting)
    # One small budget for all questions: what only looks at one of them loses most of the others.
    for method in BASELINES:
        assert cells["repeat", method, 0.1, "shared", "raw", "selected"]["score"] < 0.5


def main():
    bin_dir = sys.argv[1]
    model = "tests/fixtures/model"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        status, table, error = run(bin_dir, "quality", f"--model={model}", "--quick", "--text=tests/fixtures/documents",
                                   f"--json={folder}/q.json", f"--csv={folder}/q.csv", f"--out={folder}/answers.json")
        print(table, error)
        assert status == 0, error
        data = json.loads((folder / "q.json").read_text(encoding="utf-8"))
        assert {task["name"] for task in data["tasks"]} == TASKS
        check_rows(data["rows"])
        lines = (folder / "q.csv").read_text(encoding="utf-8")
        assert lines.endswith("\n") and not lines.endswith("\n\n"), lines[-100:]
        assert len(list(csv.DictReader(lines.splitlines()))) == len(data["rows"])

        status, again, error = run(bin_dir, "quality-report", f"--answers={folder}/answers.json",
                                   f"--json={folder}/again.json")
        assert status == 0 and again == table, error
        assert (folder / "again.json").read_bytes() == (folder / "q.json").read_bytes()

        for arguments, message in (
                (["quality"], "--model is missing"),
                (["quality", f"--model={model}", "--tasks=riddles"], '"riddles" is unknown'),
                (["quality", f"--model={model}", "--methods=kvzap"], '"kvzap" is unknown'),
                (["quality", f"--model={model}", "--ratios=2"], "ratio: 2 is not in (0, 1]"),
                (["quality", f"--model={model}", "--quick", "--samples=9"], "--quick sets --samples itself"),
                (["quality", f"--model={model}", "--quick", "--document-bytes=900"],
                 "--quick sets --document_bytes itself"),
                (["quality", f"--model={model}", f"--text={folder}/none"], "cannot read"),
                (["quality-report"], "--answers is missing"),
                (["quality-report", f"--answers={folder}/q.csv"], "not a JSON object")):
            status, _, error = run(bin_dir, *arguments)
            assert status == 2 and message in error, (arguments, status, error)
    # Flags are written one way, though both are read.
    help_text = "".join(run(bin_dir, "--help")[1:])
    assert "--document_bytes" in help_text and not re.search(r"--\w+-\w", help_text), help_text
    print("quality command: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
