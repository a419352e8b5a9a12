#!/usr/bin/env python3
"""Writes fixture_logits.safetensors: what transformers computes in fp32 with the fixture model.

    python3 -m venv --system-site-packages build/golden-venv      # the system has PyTorch: Debian's python3-torch
    build/golden-venv/bin/pip install transformers==4.46.3 safetensors
    build/golden-venv/bin/python tests/golden/make_fixture_golden.py [--check]

--check compares with the committed file instead of writing, and also with the training-side forward in scripts/.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "fixtures" / "model"
DOCUMENTS = ROOT / "tests" / "fixtures" / "documents"
GOLDEN = pathlib.Path(__file__).with_name("fixture_logits.safetensors")
BOS = 256
LOGIT_POSITIONS = [0, 1, 37, 98, 150, 199]
ROW_POSITIONS = [0, 1, 100, 199]
TOLERANCE = 1e-4  # maximum absolute error relative to the rms of the golden values


def inputs() -> tuple[list[int], list[int]]:
    """Two sequences that make the model copy: 200 ids (a text twice) and 1,500 ids (a context, then its beginning again)."""
    kettle = (DOCUMENTS / "kettle.txt").read_bytes()
    demo = (DOCUMENTS / "demo.txt").read_bytes()
    short = [BOS] + list(kettle[:110] + b"\n\n" + kettle[:87])
    long = [BOS] + list(demo[:1300] + b"\n\n" + demo[400:597])
    return short, long


@torch.no_grad()
def golden(model: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Every tensor of the file; README.md describes them."""
    short, long = inputs()
    output = model(torch.tensor([short]), use_cache=True)
    rows = torch.tensor(ROW_POSITIONS)
    keys = torch.stack([output.past_key_values[layer][0][0, :, rows] for layer in range(model.config.num_hidden_layers)])
    values = torch.stack([output.past_key_values[layer][1][0, :, rows] for layer in range(model.config.num_hidden_layers)])
    last = model(torch.tensor([long]), use_cache=False).logits[0, -1]
    return {
        "short.ids": torch.tensor(short, dtype=torch.int32),
        "short.logit_positions": torch.tensor(LOGIT_POSITIONS, dtype=torch.int32),
        "short.logits": output.logits[0, LOGIT_POSITIONS].contiguous(),
        "short.row_positions": torch.tensor(ROW_POSITIONS, dtype=torch.int32),
        "short.keys": keys.contiguous(),
        "short.values": values.contiguous(),
        "long.ids": torch.tensor(long, dtype=torch.int32),
        "long.last_logits": last.contiguous(),
    }


def report_error(name: str, got: torch.Tensor, want: torch.Tensor) -> bool:
    error = float((got - want).abs().max() / want.pow(2).mean().sqrt())
    print(f"{name:18} max error / rms {error:.2e}  {'ok' if error <= TOLERANCE else 'TOO LARGE'}")
    return error <= TOLERANCE


def check_training_forward(want: dict[str, torch.Tensor]) -> bool:
    """Compares the forward pass of scripts/fixture_model with the golden logits."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from fixture_model.model import load_pretrained

    model = load_pretrained(MODEL)
    short, _ = model.run(want["short.ids"].long()[None])
    long, _ = model.run(want["long.ids"].long()[None])
    fine = report_error("training short", short[0, LOGIT_POSITIONS], want["short.logits"])
    return report_error("training long", long[0, -1], want["long.last_logits"]) and fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    model = transformers.LlamaForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32).eval()
    tensors = golden(model)
    if not check:
        save_file(tensors, GOLDEN, metadata={"model_sha256": digest, "transformers": transformers.__version__,
                                             "torch": torch.__version__})
        print(f"wrote {GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes")
        return 0
    want = load_file(GOLDEN)
    fine = [report_error(name, tensors[name], want[name]) for name in want if want[name].dtype == torch.float32]
    return 0 if check_training_forward(want) and all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
