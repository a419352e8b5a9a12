#!/usr/bin/env python3
"""Runs kvtier-bench on little data: the rows of docs/performance.md are there, in the table and in the
JSON file, with its limit; --check and wrong command lines do what the help says. Speed is not judged.

    bench_command_test.py BIN_DIR
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(sys.argv.pop(1))


def bench(*args):
    return subprocess.run([BIN / "kvtier-bench", *args], cwd=ROOT, capture_output=True, text=True, check=False)


class BenchCommandTest(unittest.TestCase):
    def rows(self, *args):
        """Runs with --quick and --json FILE; the rows by name and what was printed."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "rows.json")
            result = bench(*args, "--quick", "--json", str(file))
            self.assertEqual(result.returncode, 0, result.stderr)
            data = json.loads(file.read_text(encoding="utf-8"))
        self.assertTrue(data["quick"])
        for row in data["rows"]:
            self.assertIn(row["name"], result.stdout)
            self.assertIn("unit", row)
            if "target" in row:
                self.assertIsInstance(row["pass"], bool)
        return {(row["suite"], row["name"]): row for row in data["rows"]}

    def test_transfer(self):
        rows = self.rows("transfer")
        for name, share in [("fetch of 4 MiB segments, copied", 0.75),
                            ("fetch of 4 MiB segments, copied, every CRC verified", 0.62),
                            ("put HOST of 4 MiB segments", 0.65)]:
            row = rows["transfer", name]
            self.assertEqual((row["target"], row["target_is"]), (share, ">= of_limit"))
            self.assertEqual(row["limit_name"], "raw TCP")
            self.assertAlmostEqual(row["of_limit"], row["value"] / row["limit"])
            self.assertEqual(row["pass"], row["of_limit"] >= share)
        self.assertEqual(rows["transfer", "fetch of 4 MiB segments, server CPU"]["target_is"], "<= value")

    def test_shm(self):
        rows = self.rows("shm")
        name = "fetch through shared memory, read in place"
        for row, share, limit in [(name, 0.8, "memcpy"), (name + ", beside TCP", 2, "fetch over TCP")]:
            self.assertEqual((rows["shm", row]["target"], rows["shm", row]["target_is"]), (share, ">= of_limit"))
            self.assertEqual(rows["shm", row]["limit_name"], limit)
        for row in (name + ", every CRC verified", name + ", mapped here before"):
            self.assertNotIn("target", rows["shm", row])
            self.assertGreater(rows["shm", row]["value"], 0)

    def test_get(self):
        rows = self.rows("get")
        for name, most in [("4 KiB get, p50", 100), ("4 KiB get, p99", 250)]:
            self.assertEqual((rows["get", name]["target"], rows["get", name]["target_is"]), (most, "<= value"))
            self.assertGreater(rows["get", name]["limit"], 0)

    def test_lookup(self):
        rows = self.rows("lookup")
        row = rows["lookup", "lookup of 64 prompts x 64 blocks"]
        self.assertEqual((row["target"], row["target_is"], row["limit_name"]), (3e6, ">= value", "raw TCP"))
        row = rows["lookup", "lookup of 64 prompts x 64 blocks, p99 of a batch"]
        self.assertEqual((row["target"], row["target_is"], row["unit"]), (5, "<= value", "ms"))
        self.assertGreater(rows["lookup", "lookup of 64 prompts x 64 blocks, index alone"]["of_limit"], 0)

    def test_pages(self):
        rows = self.rows("pages")
        for name, least in [("put of pages HOST, 4 KiB, batches of 32", 30000), ("get of pages, 4 KiB, batches of 32", 100000)]:
            row = rows["pages", name]
            self.assertEqual((row["target"], row["target_is"]), (least, ">= value"))
            self.assertGreater(row["limit"], 0)
            self.assertIn(row["limit_name"], ("Redis MSET", "Redis MGET", "raw TCP"))
        row = rows["pages", "put of pages DISK, 4 KiB, batches of 32"]
        self.assertGreater(row["value"], 0)
        self.assertNotIn("target", row)

    def test_redis_or_why_not(self):
        row = self.rows("redis")["redis", "one context at ratio 0.3, beside the dense one through Redis"]
        self.assertEqual(row["target"], 3)
        if "not_measured" in row:
            self.assertIn("scripts/bench-deps.sh", row["not_measured"])
            self.assertFalse(row["pass"])
        else:
            self.assertGreater(row["value"], 0)

    def test_every_fetch_under_pressure_is_served(self):
        rows = self.rows("pressure")
        self.assertEqual(rows["pressure", "256 fetches, budget a tenth: failed"]["value"], 0)
        self.assertEqual(rows["pressure", "256 fetches, budget a tenth: verified bytes / bytes asked for"]["value"], 1)

    def test_check_insists_on_required_rows_only(self):
        # Banded LRU has targets too, but only those of banded_gdsf are required.
        self.assertEqual(bench("retention", "--check").returncode, 0)

    def test_refusals(self):
        for args, code, message in [
                ([], 2, "no suite"),
                (["nothing"], 2, "no suite 'nothing'"),
                (["transfer", "--frobnicate"], 2, "frobnicate"),
                (["transfer", "--quick", "--json", "/nonexistent/rows.json"], 1, "cannot write /nonexistent/rows.json"),
                (["disk", "--quick", "--folder", "/nonexistent"], 1, "/nonexistent"),
        ]:
            result = bench(*args)
            self.assertEqual(result.returncode, code, args)
            self.assertIn(message, result.stderr)
        result = bench("--help")
        self.assertEqual(result.returncode, 0)
        for word in ("transfer", "shm", "get", "lookup", "pages", "disk", "redis", "pressure", "retention", "compute", "--json",
                     "--check", "--quick"):
            self.assertIn(word, result.stdout)


if __name__ == "__main__":
    unittest.main()
