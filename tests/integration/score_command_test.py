#!/usr/bin/env python3
"""kvtier-eval score and head-scores on the fixture model, read by a program that shares no code with them.

    score_command_test.py BIN_DIR

The files are parsed here (safetensors: a length, a JSON header, raw arrays), the selection is made again by
sorting, and the scores are compared with tests/golden/scores, which NumPy computed from the definition.
"""

import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "fixtures" / "model"
GOLDEN = ROOT / "tests" / "golden" / "scores" / "definition_fixture.safetensors"
FORMATS = {"F32": "f", "I32": "i", "U8": "B"}
TOLERANCE = 1e-4
failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)
        print(f"score_command_test: {message}", flush=True)


def read(path):
    """{name: (shape, values)} and the metadata."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length:]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = FORMATS[entry["dtype"]]
        tensors[name] = (entry["shape"],
                         struct.unpack(f"<{(end - begin) // struct.calcsize(kind)}{kind}", body[begin:end]))
    return tensors, metadata


def run(bin_dir, *arguments):
    return subprocess.run([bin_dir / "kvtier-eval", *map(str, arguments)], capture_output=True, text=True, check=False)


def by_score(scores, indices):
    return sorted(indices, key=lambda i: (-scores[i], i))


def selected(recipe, scores, shape, millionths):
    """Indices kept, by the rules of docs/recipes.md."""
    layers, heads, tokens = shape
    count = layers * heads
    if recipe == "uniform":
        kept = [by_score(scores, range(h * tokens, (h + 1) * tokens))[:tokens * millionths // 1_000_000] for h in range(count)]
        return {i for head in kept for i in head}
    if recipe == "head":
        order = by_score([max(scores[h * tokens:(h + 1) * tokens]) for h in range(count)], range(count))
        return {h * tokens + t for h in order[:count * millionths // 1_000_000] for t in range(tokens)}
    pairs = count * tokens
    kept = pairs - pairs * (1_000_000 - millionths) // 1_000_000 if recipe == "kvpress" else pairs * millionths // 1_000_000
    return set(by_score(scores, range(pairs))[:kept])


def check(bin_dir, folder):
    golden, _ = read(GOLDEN)
    context = list(golden["context"][1])
    ids = folder / "context.json"
    ids.write_text(json.dumps(context))
    short = folder / "short.json"
    short.write_text(json.dumps(context[300:700]))

    heads = folder / "heads.safetensors"
    made = run(bin_dir, "head-scores", "--model", MODEL, "--token-ids", f"{ids},{short}", "--out", heads)
    expect(made.returncode == 0, f"head-scores failed: {made.stderr}")
    tensors, metadata = read(heads)
    expect(metadata["context_tokens"] == "1001,400", f"head-scores metadata: {metadata}")
    both = tensors["head_log_scores"][1]
    expect(tensors["head_log_scores"][0] == golden["head.log_scores"][0], "head-scores has another shape")
    # The maximum over two contexts: never below that of the first.
    expect(all(b >= a - TOLERANCE for a, b in zip(golden["head.log_scores"][1], both)), "head-scores is not a maximum")

    for recipe, ratio in [("kvzip", 300_000), ("kvzip+", 100_000), ("full-softmax", 600_000), ("uniform", 300_000),
                          ("kvpress", 300_000), ("head", 600_000)]:
        out = folder / f"{recipe}.safetensors"
        result = run(bin_dir, "score", "--model", MODEL, "--token-ids", ids, "--recipe", recipe, "--ratio", ratio / 1e6,
                     "--head-scores", heads, "--out", out)
        if result.returncode != 0:
            expect(False, f"score --recipe {recipe} failed: {result.stderr}")
            continue
        tensors, metadata = read(out)
        shape, scores = tensors["log_scores"]
        expect(metadata["recipe"].startswith(recipe + "/1"), f"{recipe}: metadata says {metadata['recipe']}")
        expect(shape[2] == len(context) + (58 if recipe == "kvpress" else 0), f"{recipe}: shape {shape}")
        expect(tensors["kept"][0] == shape, f"{recipe}: kept has another shape than log_scores")
        kept = {i for i, bit in enumerate(tensors["kept"][1]) if bit}
        expect(kept == selected(recipe, scores, shape, ratio), f"{recipe}: the kept pairs are not those of the rule")
        expect(int(metadata["kept_pairs"]) == len(kept), f"{recipe}: {metadata['kept_pairs']} kept, by the mask {len(kept)}")
        expect(int(metadata["pairs"]) == math.prod(shape), f"{recipe}: pairs")
        if recipe not in ("uniform", "head"):  # There the lowest score kept is not the cut of one order.
            expect(abs(float(metadata["threshold"]) - min(scores[i] for i in kept)) < 1e-6, f"{recipe}: threshold")
        name = "kvzip" if recipe == "uniform" else recipe
        if f"{name}.log_scores" in golden and recipe != "head":
            error = max(abs(a - b) for a, b in zip(scores, golden[f"{name}.log_scores"][1]))
            expect(error <= TOLERANCE, f"{recipe}: scores differ by {error} from the definition")
            print(f"{recipe}: log scores differ by at most {error:.1e}")
        if recipe == "head":
            expect(all(scores[h * shape[2]] == both[h] for h in range(len(both))), "head: scores are not those of the file")
        logits = tensors["last_logits"][1]
        wanted = golden["last_logits"][1]
        rms = math.sqrt(sum(x * x for x in wanted) / len(wanted))
        expect(max(abs(a - b) for a, b in zip(logits, wanted)) <= TOLERANCE * max(1, rms), f"{recipe}: logits differ")

    for words, flags in [("--token_ids is missing", []), ("--out is missing", ["--token-ids", ids, "--out="]),
                         ("unknown scorer", ["--token-ids", ids, "--recipe", "magic"]),
                         ("no head scores", ["--token-ids", ids, "--recipe", "head"]),
                         ("ratio", ["--token-ids", ids, "--ratio", "1.5"]), ("cannot read", ["--token-ids", folder / "none"]),
                         ("one file", ["--token-ids", f"{ids},{short}"])]:
        result = run(bin_dir, "score", "--model", MODEL, "--out", folder / "x", *flags)
        expect(result.returncode == 2 and words in result.stderr, f"score {flags}: {result.returncode} {result.stderr}")
        expect(not (folder / "x").exists(), f"score {flags} left a file")


def main():
    with tempfile.TemporaryDirectory() as folder:
        check(pathlib.Path(sys.argv[1]), pathlib.Path(folder))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
