#!/usr/bin/env python3
"""Writes bf16.safetensors: what bf16 arithmetic costs transformers on the fixture model, and the fp32 values to measure against.

    build/golden-venv/bin/python tests/golden/make_bf16_golden.py [--check]     (requirements.txt beside it)

The ids are prefix ++ context of scores/definition_fixture.safetensors, whose fp32 scores and kept sets belong to this golden.
bf16 means weights, activations and cache in bf16 on a CPU, with both attention implementations of transformers; an error is the
root mean square of (bf16 - fp32) over the rows that are stored. README.md lists the tensors.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

import kvzip_numpy
import make_score_golden as scores

GOLDEN = pathlib.Path(__file__).with_name("bf16.safetensors")
MILLIONTHS = 300_000
TOLERANCE = 1e-4
RMS_TOLERANCE = 0.1  # bf16 errors themselves depend on the processor's instructions


def load(dtype: torch.dtype, attention: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(scores.FIXTURE, dtype=dtype, attn_implementation=attention).eval()


@torch.no_grad()
def run(model: torch.nn.Module, ids: list[int], logit_rows: list[int], cache_rows: list[int]) -> dict[str, torch.Tensor]:
    cache = DynamicCache()
    logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, logit_rows]
    return {"logits": logits.float(), "keys": torch.stack([layer.keys[0, :, cache_rows] for layer in cache.layers]).float(),
            "values": torch.stack([layer.values[0, :, cache_rows] for layer in cache.layers]).float()}


def rms(error: torch.Tensor, by_layer: bool) -> torch.Tensor:
    error = error.double().pow(2)
    return (error.flatten(1).mean(dim=1) if by_layer else error.mean().reshape(1)).sqrt()


def golden() -> dict[str, torch.Tensor]:
    prefix, profile, context = scores.setting_of("fixture")
    ids = prefix + context
    logit_rows = list(range(5, len(ids), 8)) + [len(ids) - 1]
    cache_rows = list(range(3, len(ids), 32)) + [len(ids) - 1]
    exact = run(load(torch.float32, "eager"), ids, logit_rows, cache_rows)
    tensors = {"ids": scores.i32(ids), "logit_positions": scores.i32(logit_rows), "cache_positions": scores.i32(cache_rows),
               **{key: value.contiguous() for key, value in exact.items()}}
    want, _ = scores.definition_scores(scores.load("fixture", "eager"), prefix, profile, context, ("kvzip",))
    kept = kvzip_numpy.keep_exact(want["kvzip"], MILLIONTHS)
    for attention in ("sdpa", "eager"):
        got = run(load(torch.bfloat16, attention), ids, logit_rows, cache_rows)
        for key, value in got.items():
            tensors[f"{attention}.rms.{key}"] = rms(value - exact[key], by_layer=key != "logits")
    rounded, _ = scores.definition_scores(load(torch.bfloat16, "eager"), prefix, profile, context, ("kvzip",))
    both = int((kvzip_numpy.keep_exact(rounded["kvzip"], MILLIONTHS) & kept).sum())
    tensors["eager.kept_overlap"] = torch.tensor([both / int(kept.sum())], dtype=torch.float64)
    return tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    tensors = golden()
    for key, value in tensors.items():
        if value.dtype == torch.float64:
            print(f"{key}: {np.array2string(value.numpy(), precision=5)}")
    print("rms of the fp32 values:", {key: round(float(tensors[key].pow(2).mean().sqrt()), 3) for key in ("logits", "keys", "values")})
    if not check:
        save_file(tensors, GOLDEN, metadata={"transformers": transformers.__version__, "torch": torch.__version__})
        GOLDEN.chmod(0o644)
        print(f"wrote {GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes")
        return 0
    want = load_file(GOLDEN)
    fine = want.keys() == tensors.keys()
    for key, value in want.items():
        if value.dtype == torch.int32:
            fine = fine and torch.equal(value, tensors[key])
            continue
        bound = RMS_TOLERANCE * value.abs() if value.dtype == torch.float64 else TOLERANCE * max(1.0, float(value.pow(2).mean().sqrt()))
        fine = fine and bool(((tensors[key] - value).abs() <= bound).all())
    print("as committed" if fine else "differs from the committed file")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
