#!/usr/bin/env python3
"""Tests bench/gpu/peers.py without PyTorch: its arguments, its rows and how it resumes."""

import contextlib
import io
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "bench" / "gpu" / "peers.py"
sys.path.insert(0, str(SCRIPT.parent))

import peers  # noqa: E402


def run(*arguments):
    done = subprocess.run([sys.executable, "-B", str(SCRIPT), *arguments], capture_output=True,
                          text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def measured(names, path, resume=False, device="GPU one", build="one", fails=(), seconds=0.5):
    """Names that were measured, and how many failed."""
    seen = []

    def measure(name):
        seen.append(name)
        if name in fails:
            raise RuntimeError("no memory")
        return {"seconds": seconds}

    with contextlib.redirect_stdout(io.StringIO()):
        failed = peers.run_rows(names, peers.Results(path, resume, device, build), measure)
    return seen, failed


class PeersTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "peers.jsonl"

    def test_help_and_wrong_arguments(self):
        status, out, _ = run("--help")
        self.assertEqual(status, 0)
        self.assertIn("--resume", out)
        for wrong in (["--resume"], ["--models", "gpt"], ["--contexts", "many"], ["--runs", "0"],
                      ["--device", "-1"], ["--contexts", "0"]):
            self.assertEqual(run(*wrong)[0], 2, wrong)

    def test_rows_come_in_order_of_value(self):
        status, out, _ = run("--list", "--models", "llama-3.1-8b", "--contexts", "131072,8192",
                             "--tokenizer", "somewhere")
        self.assertEqual(status, 0)
        rows = out.split()
        self.assertEqual(rows[0], "sdpa/llama-3.1-8b/131072/flash_attention-gqa")
        self.assertEqual(rows[-2:], ["kvpress/llama-3.1-8b/131072", "kvpress/llama-3.1-8b/8192"])
        self.assertEqual(len(rows), 2 * 4 * 2 + 2)

    def test_no_row_is_a_wrong_argument(self):
        status, out, why = run("--list", "--rows", "kvpress")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("--tokenizer", why)
        status, _, why = run("--rows", "sdqa,other", "--tokenizer", "somewhere")
        self.assertEqual(status, 2)
        self.assertIn("sdqa or other", why)

    def test_the_shapes_are_the_models(self):
        for model, token_bytes in (("llama-3.1-8b", 131072), ("qwen2.5-14b", 196608)):
            shape = peers.MODELS[model]
            self.assertEqual(shape["layers"] * shape["kv_heads"] * shape["head_dim"] * 4,
                             token_bytes)
            self.assertEqual(shape["kv_heads"] * shape["group"] * shape["head_dim"],
                             shape["hidden"])

    def test_resumes_behind_the_last_row(self):
        self.assertEqual(measured(["a", "b"], self.path, fails=("b",)), (["a", "b"], 1))
        self.assertEqual(measured(["a", "b", "c"], self.path, resume=True), (["b", "c"], 0))
        self.assertEqual(measured(["a"], self.path, resume=True, device="two")[0], ["a"])
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.assertEqual(rows[0], {"build": "one", "device": "GPU one", "name": "a",
                                   "figures": {"seconds": 0.5}})
        self.assertIn("no memory", rows[1]["error"])

    def test_rows_of_another_build_are_measured_again(self):
        measured(["a"], self.path)
        self.assertEqual(measured(["a"], self.path, resume=True, build="two")[0], ["a"])
        self.assertEqual(measured(["a"], self.path, resume=True, build="two")[0], [])
        self.path.write_text('{"device": "GPU one", "name": "a", "figures": {}}\n')
        self.assertEqual(measured(["a"], self.path, resume=True)[0], ["a"])

    def test_the_build_is_versions_and_runs(self):
        torch = types.SimpleNamespace(__version__="9.8.7")
        build = peers.build_of(torch, 5)
        self.assertIn("torch 9.8.7", build)
        self.assertIn("kvpress", build)
        self.assertEqual(build, peers.build_of(torch, 5))
        self.assertNotEqual(build, peers.build_of(torch, 6))

    def test_a_figure_that_is_no_number_is_a_failure(self):
        for seconds in (math.nan, math.inf):
            self.assertEqual(measured(["a"], self.path, resume=True, seconds=seconds), (["a"], 1))
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.assertEqual([row["error"] for row in rows],
                         ["ValueError: seconds is nan", "ValueError: seconds is inf"])

    def test_a_line_that_was_cut_off_is_measured_again(self):
        measured(["a", "b"], self.path)
        whole = self.path.read_text()
        self.path.write_text(whole[:-5])
        self.assertEqual(measured(["a", "b"], self.path, resume=True)[0], ["b"])
        self.assertEqual(self.path.read_text(), whole)

    def test_writes_over_nothing(self):
        measured(["a"], self.path)
        with self.assertRaises(FileExistsError):
            measured(["a"], self.path)
        with self.path.open("a") as file:
            file.write("no row\n")
        with self.assertRaisesRegex(ValueError, "line 2"):
            measured(["a"], self.path, resume=True)

    def test_without_a_gpu_it_is_skipped(self):
        torch, why = peers.load_torch(device=1 << 20)
        self.assertIsNone(torch)
        self.assertTrue(why)
        # No machine has so many GPUs.
        status, out, _ = run("--device", str(1 << 20))
        self.assertEqual(status, 77)
        self.assertIn("skipped", out)


if __name__ == "__main__":
    unittest.main()
