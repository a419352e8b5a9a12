#!/usr/bin/env python3
"""Writes rope.json: the inverse frequencies that transformers computes for RoPE settings of real models.

    build/golden-venv/bin/python tests/golden/make_rope_golden.py [--check]     (requirements.txt beside it)

Each entry: name; head_dim; max_position_embeddings; rope (the parameters in transformers 5's words); attention_scaling, the
factor on cos and sin; inverse_frequencies, head_dim / 2 fp32 numbers as the hexadecimal of their bits; rows, the fp32 cos and
sin (same form, head_dim / 2 each, scaled) that the model's own rotary module gives at some positions. transformers multiplies
position by frequency in fp32: at 131,071 the angle is rounded by up to 2^-8, so compare rows with a bound that follows from it.
PyTorch's fp32 power may differ by one unit in the last place between processors; --check allows that and counts it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import struct
import sys

import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

GOLDEN = pathlib.Path(__file__).with_name("rope.json")
POSITIONS = [1, 2047, 131071]


def llama3(factor: float) -> dict:
    return {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}


def yarn(**changes) -> dict:
    return {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768} | changes


def plain(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


def linear(theta: float, factor: float) -> dict:
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


# name: (head_dim, max_position_embeddings, parameters)
SETTINGS = {
    "Llama-3-8B": (128, 8192, plain(500000.0)),
    "Llama-3.1-8B": (128, 131072, llama3(8.0)),
    "Llama-3.2-1B": (64, 131072, llama3(32.0)),
    "Llama-3.2-3B": (128, 131072, llama3(32.0)),
    "linear-8": (128, 32768, linear(10000.0, 8.0)),
    "Qwen2.5-0.5B": (64, 32768, plain(1000000.0)),
    "Qwen2.5-7B": (128, 32768, plain(1000000.0)),
    "Qwen2.5-7B-1M": (128, 1010000, plain(10000000.0)),
    "Qwen2.5-7B yarn 4": (128, 131072, yarn()),
    "Qwen3-8B": (128, 40960, plain(1000000.0)),
    "Qwen3-8B yarn 4": (128, 131072, yarn()),
    "yarn, mscale": (64, 163840, yarn(rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096, mscale=1.0,
                                      mscale_all_dim=0.707)),
    "yarn, mscale_all_dim alone": (96, 131072, yarn(mscale_all_dim=0.5)),
    "yarn, no truncation": (64, 131072, yarn(rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096,
                                             truncate=False)),
    "yarn, other ramp and factor": (96, 131072, yarn(beta_fast=16.0, beta_slow=2.0, attention_factor=0.9)),
    "Gemma-3-1B global": (256, 32768, plain(1000000.0)),
    "Gemma-3-4B global": (256, 131072, linear(1000000.0, 8.0)),
    "Gemma-3-27B global": (128, 131072, linear(1000000.0, 8.0)),
    "Gemma-3-4B local": (256, 131072, plain(10000.0)),
}


def bits(values: torch.Tensor) -> list[str]:
    return [struct.pack(">f", value).hex() for value in values.tolist()]


def entry(name: str, head_dim: int, positions_max: int, rope: dict) -> dict:
    at = torch.tensor([POSITIONS])
    x = torch.zeros(1, dtype=torch.float32)
    if name.startswith("Gemma"):
        kind = "sliding_attention" if name.endswith("local") else "full_attention"
        other = "full_attention" if name.endswith("local") else "sliding_attention"
        config = transformers.Gemma3TextConfig(head_dim=head_dim, max_position_embeddings=positions_max,
                                               rope_parameters={kind: dict(rope), other: plain(12345.0)})
        module = Gemma3RotaryEmbedding(config)
        frequencies, scaling = getattr(module, f"{kind}_inv_freq"), getattr(module, f"{kind}_attention_scaling")
        cos, sin = module(x, at, kind)
    else:
        config = transformers.LlamaConfig(head_dim=head_dim, max_position_embeddings=positions_max, rope_parameters=dict(rope))
        module = LlamaRotaryEmbedding(config)  # Qwen2 and Qwen3 use the same code
        frequencies, scaling = module.inv_freq, module.attention_scaling
        cos, sin = module(x, at)
    half = head_dim // 2
    return {"name": name, "head_dim": head_dim, "max_position_embeddings": positions_max, "rope": rope,
            "attention_scaling": float(scaling), "inverse_frequencies": bits(frequencies),
            "rows": [{"position": position, "cos": bits(cos[0, i, :half]), "sin": bits(sin[0, i, :half])}
                     for i, position in enumerate(POSITIONS)]}


def write(document: dict) -> str:
    """One entry a line: differences stay readable."""
    lines = ",\n".join(json.dumps(item) for item in document["settings"])
    head = json.dumps({"transformers": document["transformers"], "torch": document["torch"]})[:-1]
    return f'{head}, "settings": [\n{lines}\n]}}\n'


def check(want: dict, got: dict) -> bool:
    fine = len(want["settings"]) == len(got["settings"])
    for left, right in zip(want["settings"], got["settings"]):
        steps = [abs(int(a, 16) - int(b, 16)) for a, b in zip(left["inverse_frequencies"], right["inverse_frequencies"])]
        fine = fine and max(steps) <= 1 and {**left, "inverse_frequencies": 0, "rows": 0} == {
            **right, "inverse_frequencies": 0, "rows": 0}
        print(f"{left['name']}: {sum(map(bool, steps))} of {len(steps)} frequencies differ, at most {max(steps)} ulp")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    document = {"transformers": transformers.__version__, "torch": torch.__version__,
                "settings": [entry(name, *setting) for name, setting in SETTINGS.items()]}
    if parser.parse_args().check:
        return 0 if check(json.loads(GOLDEN.read_text()), document) else 1
    GOLDEN.write_text(write(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
