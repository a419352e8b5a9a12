#!/usr/bin/env python3
"""Runs kvtier-bench retention on the fixture trace as docs/retention.md shows it, and with input that
it must refuse.

    retention_test.py BIN_DIR
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRACES = ROOT / "tests" / "fixtures" / "traces"
BIN = pathlib.Path(sys.argv.pop(1))


def bench(*args):
    return subprocess.run([BIN / "kvtier-bench", "retention", *args], cwd=ROOT, capture_output=True, text=True,
                          check=False)


class RetentionTest(unittest.TestCase):
    def test_rows(self):
        result = bench("--trace", "tests/fixtures/traces/chat.jsonl", "--check", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        data = json.loads(result.stdout)
        rows = {row["name"]: row for row in data["rows"]}
        self.assertEqual(len(rows), 10 * 11 * 6)
        self.assertEqual(data["facts"]["retention"]["requests"], len((TRACES / "chat.jsonl").read_text().splitlines()))
        for name, row in rows.items():
            scheme, _, column = name.split("/")
            judged = scheme.startswith("banded_") and column.startswith("weighted")
            self.assertEqual("pass" in row, judged, name)
            self.assertEqual(row["suite"], "retention")
            if judged:
                self.assertEqual(row["pass"], row["value"] >= row["target"], name)
        self.assertEqual(rows["banded_gdsf/2GiB/weighted"]["limit_name"], "everything fits")
        self.assertEqual(rows["banded_gdsf/2GiB/bytes_moved"]["unit"], "GB")

    def test_table_and_capacities(self):
        result = bench("--trace", "tests/fixtures/traces/chat.jsonl", "--capacities_gib", "2,0.5")
        self.assertEqual(result.returncode, 0, result.stderr)
        for word in ("2GiB", "0.500GiB", "banded_gdsf", "steep"):
            self.assertIn(word, result.stdout)

    def test_refusals(self):
        with tempfile.TemporaryDirectory() as folder:
            bad = pathlib.Path(folder, "bad")
            bad.write_text('{"timestamp": 1}\n')
            good = str(TRACES / "chat.jsonl")
            for args, message in [
                    (["--trace="], "--trace is missing"),
                    (["--trace", folder + "/none"], "cannot read"),
                    (["--trace", str(bad)], "line 1: input_length"),
                    (["--trace", good, "--curve", str(bad)], "quality curve: no list of points"),
                    (["--trace", good, "--capacities_gib", "1,x"], "x is not a number"),
                    (["--trace", good, "--capacities_gib", "-1"], "no capacity of -1"),
            ]:
                result = bench(*args)
                self.assertNotEqual(result.returncode, 0, args)
                self.assertIn(message, result.stderr)

    def test_the_trace_is_what_its_script_writes(self):
        script = subprocess.run([sys.executable, TRACES / "make_chat_trace.py"], capture_output=True, check=True)
        self.assertEqual(script.stdout, (TRACES / "chat.jsonl").read_bytes())


if __name__ == "__main__":
    unittest.main()
