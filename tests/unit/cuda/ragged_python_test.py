"""clients/python/kvtier_ragged: attention against plain Python with the emulated library, what the
library refuses, and that its header is C.

    ragged_python_test.py EMULATED_LIBRARY CUDA_LIBRARY_OR_EMPTY C_COMPILER
"""

import ctypes
import math
import pathlib
import random
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "clients" / "python"))

import kvtier_ragged as ragged  # noqa: E402

DIM = 16
GROUP = 2
SCALE = DIM ** -0.5


class Floats:
    """Aligned fp32 memory that the emulated device takes for its own."""

    def __init__(self, values):
        self.memory = ctypes.create_string_buffer(4 * max(1, len(values)) + 64)
        self.address = -(-ctypes.addressof(self.memory) // 64) * 64
        self.array = (ctypes.c_float * len(values)).from_address(self.address)
        self.array[:] = values


class Cache:
    """A ragged cache of random rows: [heads][spans] of rows, each row DIM floats."""

    def __init__(self, heads, seed=1):
        rng = random.Random(seed)
        row = lambda: [rng.uniform(-2, 2) for _ in range(DIM)]
        self.keys = [[[row() for _ in range(n)] for n in spans] for spans in heads]
        self.values = [[[row() for _ in range(n)] for n in spans] for spans in heads]
        self.memory = []
        self.spans = []
        for keys, values in zip(self.keys, self.values):
            self.spans.append([])
            for k, v in zip(keys, values):
                pair = Floats(sum(k, [])), Floats(sum(v, []))
                self.memory.append(pair)
                self.spans[-1].append(ragged.Span(pair[0].address, pair[1].address, len(k)))


def plain(cache, q, query_rows, window=0):
    """The definition, in double."""
    out = []
    for i in range(query_rows):
        for head, (keys, values) in enumerate(zip(cache.keys, cache.values)):
            k, v = sum(keys, []), sum(values, [])
            end = len(k) - query_rows + i + 1
            begin = max(0, end - window) if window else 0
            for g in range(GROUP):
                at = ((i * len(cache.keys) + head) * GROUP + g) * DIM
                row = q[at:at + DIM]
                logits = [SCALE * sum(a * b for a, b in zip(row, k[j])) for j in range(begin, end)]
                top = max(logits)
                weights = [math.exp(x - top) for x in logits]
                total = sum(weights)
                out += [sum(w * v[begin + j][d] for j, w in enumerate(weights)) / total
                        for d in range(DIM)]
    return out


class RaggedTest(unittest.TestCase):
    emulated = None
    cuda = None
    compiler = None

    def plan(self, cache, **changes):
        arguments = dict(head_dim=DIM, group=GROUP, dtype=ragged.F32, scale=SCALE,
                         multiprocessors=4)
        arguments.update(changes)
        return self.emulated.plan(cache.spans, **arguments)

    def attend(self, heads, query_rows=1, window=0):
        cache = Cache(heads)
        q = Floats([random.Random(2).uniform(-2, 2)
                    for _ in range(query_rows * len(heads) * GROUP * DIM)])
        out = Floats([math.nan] * len(q.array))
        plan = self.plan(cache, query_rows=query_rows, window=window)
        workspace = Floats([0.0] * (plan.workspace_bytes // 4))
        plan.decode(plan.buffer, q.address, out.address, workspace.address)
        for a, b in zip(out.array, plain(cache, list(q.array), query_rows, window)):
            self.assertAlmostEqual(a, b, delta=1e-4)
        return plan

    def test_uneven_heads(self):
        self.attend([[3, 0, 1], [40, 1], [1]])

    def test_a_head_so_long_that_it_is_shared_out(self):
        plan = self.attend([[900, 700, 5], [1]])
        self.assertGreater(plan.workspace_bytes, 0)

    def test_several_queries_and_a_window(self):
        self.attend([[30, 4], [4]], query_rows=3)
        self.attend([[30, 10], [12, 9]], query_rows=3, window=7)

    def test_refusals_are_named(self):
        cache = Cache([[4], [3]])
        for code, changes in [(ragged.BAD_ARGUMENT, dict(head_dim=0)),
                              (ragged.BAD_ARGUMENT, dict(head_dim=513)),
                              (ragged.BAD_ARGUMENT, dict(dtype=9)),
                              (ragged.BAD_ARGUMENT, dict(query_rows=4)),  # A head has 3 rows.
                              (ragged.BAD_ARGUMENT, dict(window=-1)),
                              (ragged.BAD_ARGUMENT, dict(multiprocessors=0))]:
            with self.assertRaises(ragged.RaggedError) as raised:
                self.plan(cache, **changes)
            self.assertEqual(raised.exception.code, code, changes)
        span = cache.spans[0][0]
        for code, wrong in [(ragged.BAD_ARGUMENT, ragged.Span(span.keys, 0, 4)),
                            (ragged.BAD_ARGUMENT, ragged.Span(span.keys, span.values, -1)),
                            (ragged.BAD_ARGUMENT, ragged.Span(span.keys, span.values, 4, 7)),
                            (ragged.BAD_ARGUMENT,
                             ragged.Span(span.keys, span.values, 4, ragged.INT8)),
                            (ragged.MISALIGNED, ragged.Span(span.keys + 1, span.values, 4))]:
            cache.spans[0][0] = wrong
            with self.assertRaises(ragged.RaggedError) as raised:
                self.plan(cache)
            self.assertEqual(raised.exception.code, code, wrong)

    def test_a_decode_checks_what_it_is_given(self):
        cache = Cache([[900]])
        plan = self.plan(cache)
        memory = Floats([0.0] * (plan.workspace_bytes // 4 + 2 * GROUP * DIM))
        good = dict(device_plan=plan.buffer, q=memory.address, out=memory.address,
                    workspace=memory.address)
        for code, changes in [(ragged.BAD_ARGUMENT, dict(q=0)),
                              (ragged.BAD_ARGUMENT, dict(device_plan=0)),
                              (ragged.MISALIGNED, dict(out=memory.address + 2)),
                              (ragged.MISALIGNED, dict(workspace=memory.address + 4)),
                              (ragged.TOO_SMALL, dict(workspace=0)),
                              (ragged.TOO_SMALL,
                               dict(workspace_bytes=plan.workspace_bytes - 1))]:
            with self.assertRaises(ragged.RaggedError) as raised:
                plan.decode(**{**good, **changes})
            self.assertEqual(raised.exception.code, code, changes)
        ctypes.c_uint32.from_address(plan.buffer).value ^= 1
        with self.assertRaises(ragged.RaggedError) as raised:
            plan.decode(**good)
        self.assertEqual(raised.exception.code, ragged.BAD_VERSION)

    def test_other_versions_are_refused(self):
        cache = Cache([[4]])
        known, ragged.VERSION = ragged.VERSION, ragged.VERSION + 1
        try:
            with self.assertRaises(ragged.RaggedError) as raised:
                self.plan(cache)
            self.assertEqual(raised.exception.code, ragged.BAD_VERSION)
        finally:
            ragged.VERSION = known

    # Without a device: the library loads, makes plans, and says what a launch came to.
    def test_the_real_library_loads(self):
        if not self.cuda:
            self.skipTest("built without CUDA")
        library = ragged.Library(self.cuda)
        cache = Cache([[4]])
        plan = library.plan(cache.spans, head_dim=DIM, group=GROUP, dtype=ragged.F32, scale=1.0,
                            multiprocessors=132)
        with self.assertRaises(ragged.RaggedError) as raised:
            plan.decode(plan.buffer, 0, 0, 0)
        self.assertEqual(raised.exception.code, ragged.BAD_ARGUMENT)

    def test_the_header_is_c(self):
        header = ROOT / "cuda" / "kvtier_ragged_decode.h"
        subprocess.run([self.compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
                        "-fsyntax-only", "-x", "c", str(header)], check=True)


if __name__ == "__main__":
    RaggedTest.emulated = ragged.Library(sys.argv[1])
    RaggedTest.cuda = sys.argv[2]
    RaggedTest.compiler = sys.argv[3] or "cc"
    unittest.main(argv=sys.argv[:1])
