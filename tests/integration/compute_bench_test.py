#!/usr/bin/env python3
"""Runs kvtier-bench compute on a tiny random model: every figure is there and is a number, and the
scores of the longer context equal the reference's. Speed is not judged here.

    compute_bench_test.py BIN_DIR
"""

import json
import pathlib
import subprocess
import sys
import unittest

BIN = pathlib.Path(sys.argv.pop(1))
QUICK = ["--tokens=300", "--long_tokens=4100", "--runs=1"]


def bench(*args):
    return subprocess.run([BIN / "kvtier-bench", "compute", *args], capture_output=True, text=True, check=False)


class ComputeBenchTest(unittest.TestCase):
    def test_figures(self):
        result = bench("--shape=tiny", "--json=-", *QUICK)
        self.assertEqual(result.returncode, 0, result.stderr)
        figures = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
        for name in ("prefill", "scoring", "prefill, FLOP rate", "scoring, FLOP rate", "scoring / prefill time",
                     "score step alone, one layer and chunk", "rank step alone", "decode at ratio 1",
                     "decode at ratio 0.3", "4100 tokens, 2 layers: scoring"):
            self.assertGreater(figures[name]["value"], 0, name)
        for name in ("prefill, FLOP rate", "scoring, FLOP rate", "scoring / prefill time",
                     "peak memory beyond weights and cache"):
            self.assertGreater(figures[name]["limit"], 0, name)
        difference = figures["largest difference from the reference"]
        self.assertLessEqual(difference["value"], difference["limit"])

    def test_unknown_shape(self):
        result = bench("--shape=enormous")
        self.assertEqual(result.returncode, 1)
        self.assertIn("shape 'enormous' is unknown; use qwen2.5-0.5b, two-layers, tiny", result.stderr)


if __name__ == "__main__":
    unittest.main()
