#!/usr/bin/env python3
"""Writes families/: tiny random checkpoints of every model family and what transformers computes with them.

    python3 -m venv build/golden-venv
    build/golden-venv/bin/pip install -r tests/golden/requirements.txt
    build/golden-venv/bin/python tests/golden/make_family_golden.py [--only NAME] [--check]

Each folder is a checkpoint as people have them (config.json in the words of transformers 4 or 5, one or several
safetensors files, kvtier_prompt_profile.json) and expected.safetensors, whose tensors README.md lists. Weights are made by
NumPy from a seed and rounded to the type of the checkpoint; transformers loads that very folder, upcasts to fp32 and computes
with plain ("eager") attention. No code of kvtier is used.

--check compares with the committed files, and then breaks the computation on purpose, one mistake at a time (another rotation,
a window one too wide, no bias, ...): every mistake that a configuration can show must move some golden value by at least 10
tolerances, or the golden would not notice it.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from transformers_model import replaced, set_up, text_model

GOLDEN = pathlib.Path(__file__).with_name("families")
TOLERANCE = 1e-4  # times max(1, rms of the tensor), the bound that kvtier's tests use
DETECTED = 10.0   # tolerances by which a mistake must show
BYTES_MAX = 6 << 20  # of the whole folder


# --- the configurations -------------------------------------------------------------------------------------------------------
# `config` is config.json word for word. What differs between two entries is what a wrong implementation gets away with in one.

def llama4(**changes):
    """A Llama config.json as transformers 4 wrote it: rope_theta and rope_scaling at the top, torch_dtype, no head_dim."""
    return {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
            "eos_token_id": [2, 3], "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 131072,
            "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "tie_word_embeddings": False, "transformers_version": "4.43.0.dev0", "use_cache": True} | changes


def qwen4(**changes):
    """What transformers 4 wrote for Qwen2.5 and Qwen3: window keys that say nothing, because use_sliding_window is off."""
    return {"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 32768, "max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "sliding_window": 131072, "tie_word_embeddings": False, "transformers_version": "4.51.0", "use_cache": True,
            "use_sliding_window": False} | changes


def gemma5(**changes):
    """The text part of a Gemma 3 config.json as transformers 5 writes it."""
    return {"_sliding_window_pattern": 6, "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
            "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh",
            "initializer_range": 0.02, "max_position_embeddings": 131072, "model_type": "gemma3_text", "pad_token_id": 0,
            "rms_norm_eps": 1e-06, "tie_word_embeddings": True, "use_bidirectional_attention": False, "use_cache": True} | changes


VISION = {"hidden_size": 8, "image_size": 8, "intermediate_size": 8, "model_type": "siglip_vision_model",
          "num_attention_heads": 1, "num_hidden_layers": 1, "patch_size": 4}

MODELS = {
    # Llama 3.1's RoPE with a pre-training length so short that all three bands of frequencies exist. head_dim must be
    # derived. One query head for each KV head.
    "llama_llama3_rope": dict(
        seed=11, dtype="float16", tokens=83, config=llama4(
            hidden_size=128, intermediate_size=77, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=2,
            vocab_size=131, torch_dtype="float16",
            rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 64, "rope_type": "llama3"})),
    # transformers 5, tied embeddings, linear scaling, three query heads for each KV head of 96, several files.
    "llama_linear_tied": dict(
        seed=12, dtype="float32", tokens=37, shards=3, config={
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
            "dtype": "float32", "eos_token_id": 2, "head_dim": 96, "hidden_act": "silu", "hidden_size": 36,
            "initializer_range": 0.02, "intermediate_size": 56, "max_position_embeddings": 8192, "mlp_bias": False,
            "model_type": "llama", "num_attention_heads": 6, "num_hidden_layers": 2, "num_key_value_heads": 2,
            "pad_token_id": None, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_parameters": {"factor": 4.0, "rope_theta": 10000.0, "rope_type": "linear"},
            "tie_word_embeddings": True, "transformers_version": "5.2.0", "use_cache": True, "vocab_size": 97}),
    # YaRN with mscale and mscale_all_dim (the factor on cos and sin is their quotient), 8 query heads for one KV head.
    "llama_yarn_mscale": dict(
        seed=13, dtype="bfloat16", tokens=83, config=llama4(
            head_dim=64, hidden_size=36, intermediate_size=50, num_attention_heads=8, num_hidden_layers=3,
            num_key_value_heads=1, vocab_size=101, torch_dtype="bfloat16", rms_norm_eps=1e-06,
            rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "mscale": 1.0,
                          "mscale_all_dim": 0.5})),
    # Biases on q, k, v; tied; head_dim derived.
    "qwen2_tied": dict(
        seed=21, dtype="float32", tokens=37, config=qwen4(
            architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=128, intermediate_size=43,
            num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1, vocab_size=101, torch_dtype="float32",
            tie_word_embeddings=True)),
    # The YaRN of Qwen2.5's model card (key "type"), untied, head_dim 128 given; a pre-training length that puts the ramp
    # inside the frequencies.
    "qwen2_yarn": dict(
        seed=22, dtype="bfloat16", tokens=83, shards=2, config=qwen4(
            architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=48, intermediate_size=61, head_dim=128,
            num_attention_heads=3, num_hidden_layers=3, num_key_value_heads=1, vocab_size=131, torch_dtype="bfloat16",
            rope_scaling={"factor": 4.0, "original_max_position_embeddings": 256, "type": "yarn"})),
    # q and k norms; 8 query heads of 128 in a model 44 wide; tied.
    "qwen3_tied": dict(
        seed=31, dtype="float16", tokens=37, config=qwen4(
            architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, hidden_size=44, intermediate_size=53,
            head_dim=128, num_attention_heads=8, num_hidden_layers=2, num_key_value_heads=1, vocab_size=97,
            rope_scaling=None, torch_dtype="float16", sliding_window=None, max_window_layers=2, tie_word_embeddings=True)),
    # transformers 5; YaRN without truncation, other ramp ends, a factor for cos and sin given; one query head a KV head.
    "qwen3_yarn": dict(
        seed=32, dtype="float32", tokens=83, config={
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
            "dtype": "float32", "eos_token_id": None, "head_dim": 96, "hidden_act": "silu", "hidden_size": 40,
            "initializer_range": 0.02, "intermediate_size": 57, "layer_types": ["full_attention"] * 2,
            "max_position_embeddings": 1024, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 2,
            "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": None, "rms_norm_eps": 1e-06,
            "rope_parameters": {"attention_factor": 0.9, "beta_fast": 16.0, "beta_slow": 2.0, "factor": 4.0,
                                "original_max_position_embeddings": 256, "rope_theta": 1000000.0, "rope_type": "yarn",
                                "truncate": False},
            "sliding_window": None, "tie_word_embeddings": False, "transformers_version": "5.2.0", "use_cache": True,
            "use_sliding_window": False, "vocab_size": 113}),
    # gemma-3-1b: a flat text config of transformers 4 with a pattern; every second layer is global; window 9 of 37 tokens.
    "gemma3_text": dict(
        seed=41, dtype="bfloat16", tokens=37, config={
            "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
            "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 28,
            "initializer_range": 0.02, "intermediate_size": 50, "max_position_embeddings": 32768, "model_type": "gemma3_text",
            "num_attention_heads": 3, "num_hidden_layers": 3, "num_key_value_heads": 1, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
            "rope_theta": 1000000, "sliding_window": 9, "sliding_window_pattern": 2, "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 131}),
    # gemma-3-4b: nested, and silent about everything that transformers 4 had a default for: head_dim 256, scale 256, the
    # pattern 6, both bases, epsilon, activation, tied embeddings. Global layers scaled by 8. Names under language_model.model.
    "gemma3_nested_v4": dict(
        seed=42, dtype="bfloat16", tokens=29, config={
            "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 97, "eoi_token_index": 98,
            "eos_token_id": [1, 106], "image_token_index": 99, "initializer_range": 0.02, "mm_tokens_per_image": 4,
            "model_type": "gemma3",
            "text_config": {"hidden_size": 20, "intermediate_size": 34, "model_type": "gemma3_text", "num_hidden_layers": 7,
                            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 107,
                            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 7},
            "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
            "vision_config": {**VISION, "vision_use_head": False}}),
    # The same family in transformers 5's words: layer_types in an order that no pattern gives, rope_parameters by layer type, a
    # scale that is not head_dim (Gemma 3 27B: 168), 8 query heads of 96 to one KV head. Names under model.language_model.
    "gemma3_nested_v5": dict(
        seed=43, dtype="float32", tokens=83, shards=2, prefix="model.language_model.", config={
            "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 90, "dtype": "float32",
            "eoi_token_index": 91, "image_token_index": 92, "initializer_range": 0.02, "mm_tokens_per_image": 4,
            "model_type": "gemma3",
            "text_config": gemma5(
                head_dim=96, hidden_size=24, intermediate_size=38, num_attention_heads=8, num_hidden_layers=3,
                num_key_value_heads=1, query_pre_attn_scalar=168, sliding_window=11, vocab_size=103,
                layer_types=["full_attention", "sliding_attention", "full_attention"],
                rope_parameters={"full_attention": {"factor": 4.0, "rope_theta": 500000.0, "rope_type": "linear"},
                                 "sliding_attention": {"rope_theta": 20000.0, "rope_type": "default"}}),
            "tie_word_embeddings": True, "transformers_version": "5.2.0", "vision_config": VISION}),
}

# Rows of the cache in the golden where all of them would be too large.
ROWS = {name: [0, 1, 2, *range(7, entry["tokens"] - 1, 5), entry["tokens"] - 1] for name, entry in MODELS.items()
        if entry["tokens"] > 50 or "gemma" in name}


# --- weights ------------------------------------------------------------------------------------------------------------------

def deviation(name: str, shape: tuple[int, ...], tied: bool, gemma: bool, hidden: int) -> tuple[float, float]:
    """(mean, standard deviation) of a parameter: attention peaked, no norm weight near its neutral value, logits of rms ~1.5."""
    if "vision" in name or "multi_modal" in name:
        return 0.0, 0.1  # never read for text
    neutral = 0.0 if gemma else 1.0  # the stored weight that does nothing
    embedding = 0.02 if gemma else 0.05  # small, so that epsilon shows in the first layer
    if name.endswith("embed_tokens.weight"):
        return 0.0, embedding
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return neutral + 0.25, 0.3
    if name.endswith(("model.norm.weight", "language_model.norm.weight")):
        gain = 1.5 / (embedding * hidden ** 0.5) if tied else 1.0
        return gain - 1 + neutral, 0.2 * gain
    if name.endswith("norm.weight"):
        return neutral + 0.1, 0.35
    if name.endswith(".bias"):
        return 0.0, 0.7
    gain = {"q_proj": 1.4, "k_proj": 1.4, "lm_head": 1.5, "o_proj": 0.7, "down_proj": 0.7, "gate_proj": 1.3}
    return 0.0, gain.get(name.split(".")[-2], 1.0) / shape[-1] ** 0.5


def text_config(config: dict) -> dict:
    return config.get("text_config", config)


def make_weights(model: torch.nn.Module, entry: dict) -> dict[str, torch.Tensor]:
    """Seeded weights by the names of `model`, rounded to the type of the checkpoint; tied ones once."""
    text = text_config(entry["config"])
    gemma = "gemma" in text["model_type"]
    random = np.random.Generator(np.random.PCG64(entry["seed"]))
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        mean, std = deviation(name, tuple(value.shape), model.config.tie_word_embeddings, gemma, text["hidden_size"])
        array = (mean + std * random.standard_normal(tuple(value.shape))).astype(np.float32)
        weights[name] = torch.from_numpy(array).to(getattr(torch, entry["dtype"]))
    return weights


def stored_name(name: str, entry: dict) -> str:
    """The name in the file. Gemma 3 checkpoints with a vision tower: language_model.model. (also transformers 5.2), or as inside."""
    if entry["config"]["model_type"] != "gemma3" or "prefix" in entry:
        return name
    return name.replace("model.language_model.", "language_model.model.").removeprefix("model.") \
        if name.startswith("model.") else name


def write_checkpoint(folder: pathlib.Path, name: str, entry: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(entry["config"], indent=2) + "\n")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {stored_name(key, entry): value for key, value in make_weights(model, entry).items()}
    shards = entry.get("shards", 1)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(weights)
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        where = {key: files[i * shards // len(names)] for i, key in enumerate(names)}
        for file in files:
            save_file({key: weights[key] for key in names if where[key] == file}, folder / file, metadata={"format": "pt"})
        size = sum(value.numel() * value.element_size() for value in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    profile = {"version": 1, "name": name.replace("_", "-"), "prefix": [1, 17, 42], "postfix": [5, 9],
               "first_prompt": [7, 30, 31, 8], "later_prompt": [7, 33, 34, 35, 8], "query_prefix": [6], "hint_tokens": 3,
               "chunk_tokens": 13}
    (folder / "kvtier_prompt_profile.json").write_text(json.dumps(profile) + "\n")


# --- what transformers computes -----------------------------------------------------------------------------------------------

def load(folder: pathlib.Path) -> torch.nn.Module:
    """The checkpoint in fp32; an error if transformers did not use a tensor or missed one."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            raise SystemExit(f"{folder.name}: {what}: {report[what]}")
    return model.eval()


@torch.no_grad()
def run(model: torch.nn.Module, ids: list[int]) -> dict[str, torch.Tensor]:
    """logits [n, vocabulary]; keys, values [layers, kv_heads, n, head_dim]; hidden [layers + 1, n, width]."""
    hidden = []
    layers = text_model(model).layers
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: hidden.append(args[0][0]))]
    hooks += [layer.register_forward_hook(
        lambda _, args, out: hidden.append((out if isinstance(out, torch.Tensor) else out[0])[0])) for layer in layers]
    cache = DynamicCache()  # without a config: window layers keep all rows too
    logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0]
    for hook in hooks:
        hook.remove()
    return {"logits": logits, "keys": torch.stack([layer.keys[0] for layer in cache.layers]),
            "values": torch.stack([layer.values[0] for layer in cache.layers]), "hidden": torch.stack(hidden)}


def make_ids(name: str, entry: dict) -> list[int]:
    random = np.random.Generator(np.random.PCG64(entry["seed"] + 1000))
    ids = random.integers(0, text_config(entry["config"])["vocab_size"] - 16, entry["tokens"])
    ids[entry["tokens"] // 2:entry["tokens"] // 2 + 6] = ids[2:8]  # something to look back at
    return [int(i) for i in ids]


def expected(name: str, entry: dict, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    ids = make_ids(name, entry)
    rows = ROWS.get(name, list(range(len(ids))))
    out = run(model, ids)
    return {"ids": torch.tensor(ids, dtype=torch.int32), "logits": out["logits"].contiguous(),
            "cache_positions": torch.tensor(rows, dtype=torch.int32), "keys": out["keys"][:, :, rows].contiguous(),
            "values": out["values"][:, :, rows].contiguous(), "hidden": out["hidden"].contiguous()}


# --- mistakes -----------------------------------------------------------------------------------------------------------------

def deviation_in_tolerances(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    worst = 0.0
    for key in ("logits", "keys", "values", "hidden"):
        scale = TOLERANCE * max(1.0, float(want[key].pow(2).mean().sqrt()))
        worst = max(worst, float((got[key] - want[key]).abs().max()) / scale)
    return worst


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def changed_configs(config: dict) -> dict[str, dict]:
    """Config mistakes by name: the config a wrong reader would act on."""
    out = {}

    def change(label, **fields):
        other = copy.deepcopy(config)
        text_config(other).update(fields)
        out[label] = other

    text = text_config(config)
    scaled = text.get("rope_scaling") or text.get("rope_parameters", {})
    if text["model_type"] != "gemma3_text":
        kind = scaled.get("rope_type", scaled.get("type", "default"))
        theta = text.get("rope_theta", scaled.get("rope_theta"))
        base = {"rope_scaling": None, "rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        if kind != "default":
            change("no RoPE scaling", **base)
        if kind != "linear" and kind != "default":
            change("linear scaling", **base | {"rope_parameters": {"rope_type": "linear", "rope_theta": theta,
                                                                   "factor": scaled["factor"]}})
        if kind == "yarn":
            yarn = {"rope_type": "yarn", "rope_theta": theta, **{k: v for k, v in scaled.items() if k != "type"}}
            for label, fields in {"YaRN: cos and sin not scaled": {"attention_factor": 1.0},
                                  "YaRN: default scale of cos and sin": {"attention_factor": None, "mscale": None},
                                  "YaRN: other truncation": {"truncate": not yarn.get("truncate", True)},
                                  "YaRN: default ramp": {"beta_fast": 32.0, "beta_slow": 1.0},
                                  "YaRN: another original length": {"original_max_position_embeddings":
                                                                    text["max_position_embeddings"]}}.items():
                change(label, **base | {"rope_parameters": yarn | fields})
        change("another rms_norm_eps", rms_norm_eps=1e-6 if text["rms_norm_eps"] == 1e-5 else 1e-5)
        change("rope_theta ignored", **base | {"rope_theta": 10000.0 if theta != 10000.0 else 500000.0, "rope_parameters": {
            **(scaled | {"rope_type": kind}), "rope_theta": 10000.0 if theta != 10000.0 else 500000.0}})
        return out
    change("window one wider", sliding_window=text["sliding_window"] + 1)
    change("window one narrower", sliding_window=text["sliding_window"] - 1)
    change("no window", sliding_window=4096)
    change("another rms_norm_eps", rms_norm_eps=1e-5)
    change("exact gelu", hidden_activation="gelu")
    change("silu", hidden_activation="silu")
    change("another softmax scale", query_pre_attn_scalar=text.get("head_dim", 256) + 40)
    if text.get("query_pre_attn_scalar", text.get("head_dim", 256)) != text.get("head_dim", 256):
        change("softmax scale of head_dim", query_pre_attn_scalar=text["head_dim"])
    resolved = transformers.AutoConfig.for_model(**copy.deepcopy(text))
    change("layer types shifted", layer_types=resolved.layer_types[1:] + resolved.layer_types[:1])
    rope = resolved.rope_parameters
    plain = {kind: {"rope_type": "default", "rope_theta": fields["rope_theta"]} for kind, fields in rope.items()}
    change("local base for global layers", rope_scaling=None, rope_parameters={
        **rope, "full_attention": {**rope["full_attention"], "rope_theta": plain["sliding_attention"]["rope_theta"]}})
    change("global base for local layers", rope_scaling=None, rope_parameters={
        **rope, "sliding_attention": plain["full_attention"]})
    if rope["full_attention"]["rope_type"] == "linear":
        change("no RoPE scaling", rope_scaling=None, rope_parameters=plain)
        change("local layers scaled too", rope_scaling=None, rope_parameters={
            **rope, "sliding_attention": {**rope["full_attention"], **{"rope_theta": plain["sliding_attention"]["rope_theta"]}}})
    return out


def mistakes(folder: pathlib.Path, entry: dict, ids: list[int]):
    """Yields (name, outputs) of computations with one thing wrong."""
    module = importlib.import_module(type(text_model(load(folder))).__module__)
    with replaced(module, "rotate_half", rotate_pairs):
        yield "interleaved rotation", run(load(folder), ids)
    with replaced(module, "repeat_kv", lambda states, groups: states.repeat(1, groups, 1, 1)):
        yield "query heads dealt out to KV heads in turn", run(load(folder), ids)
    for label, config in changed_configs(entry["config"]).items():
        with tempfile.TemporaryDirectory() as other:
            for file in folder.glob("*.safetensors*"):
                shutil.copy(file, other)
            pathlib.Path(other, "config.json").write_text(json.dumps(config))
            yield label, run(load(pathlib.Path(other)), ids)
    gemma = "gemma" in text_config(entry["config"])["model_type"]
    parameters = {label: [suffix] for label, suffix in {
        "input norm": "input_layernorm.weight", "post-attention norm": "post_attention_layernorm.weight",
        "final norm": ".norm.weight", "q norm": "q_norm.weight", "k norm": "k_norm.weight",
        "pre-feedforward norm": "pre_feedforward_layernorm.weight",
        "post-feedforward norm": "post_feedforward_layernorm.weight", "q bias": "q_proj.bias", "k bias": "k_proj.bias",
        "v bias": "v_proj.bias"}.items()}
    for label, suffixes in parameters.items():
        model = load(folder)
        found = [p for n, p in text_model(model).named_parameters() if f".{n}".endswith(tuple(suffixes))]
        if not found:
            continue
        with torch.no_grad():
            for parameter in found:
                parameter.fill_(1.0 if "norm" in label and not gemma else 0.0)
        yield f"no {label}", run(model, ids)
    if gemma:
        for label, change in {"norms without 1 + w": "offset", "no embedding scale": 1.0, "embedding scale in bf16": "bf16"}.items():
            model = load(folder)
            embedding = text_model(model).embed_tokens
            with torch.no_grad():
                if change == "offset":
                    for key, parameter in text_model(model).named_parameters():
                        if "norm" in key:
                            parameter.sub_(1.0)
                else:
                    embedding.embed_scale.copy_(torch.tensor(1.0) if change == 1.0 else embedding.embed_scale.bfloat16().float())
            yield label, run(model, ids)


def check_mistakes(name: str, entry: dict, want: dict[str, torch.Tensor]) -> bool:
    folder = GOLDEN / name
    fine = True
    full = run(load(folder), make_ids(name, entry))
    rows = want["cache_positions"].tolist()
    for label, got in mistakes(folder, entry, make_ids(name, entry)):
        got = got | {"keys": got["keys"][:, :, rows], "values": got["values"][:, :, rows]}
        size = deviation_in_tolerances(got, want)
        harmless = size == 0.0 and torch.equal(got["logits"], full["logits"])
        if size < DETECTED:
            print(f"  {label}: {'has no effect here' if harmless else 'TOO SMALL'} ({size:.1f} tolerances)")
            fine = fine and harmless
        else:
            print(f"  {label}: {size:.0f} tolerances")
    return fine


# --- main ---------------------------------------------------------------------------------------------------------------------

def report(name: str, model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    """Prints rms values and how far an evaluation in double precision is from the golden one."""
    double = run(model.double(), tensors["ids"].tolist())
    rows = tensors["cache_positions"].tolist()
    double = double | {"keys": double["keys"][:, :, rows], "values": double["values"][:, :, rows]}
    noise = deviation_in_tolerances({k: v.float() for k, v in double.items()}, tensors)
    rms = {k: round(float(tensors[k].pow(2).mean().sqrt()), 2) for k in ("logits", "keys", "values", "hidden")}
    size = sum(file.stat().st_size for file in (GOLDEN / name).iterdir())
    print(f"{name}: {size:,} bytes, rms {rms}, fp64 differs by {noise:.3f} tolerances")
    return noise < 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(MODELS), help="one configuration")
    parser.add_argument("--check", action="store_true", help="compare instead of writing, and try the mistakes")
    arguments = parser.parse_args()
    set_up()
    fine = True
    for name, entry in MODELS.items():
        if arguments.only not in (None, name):
            continue
        folder = GOLDEN / name
        if not arguments.check:
            shutil.rmtree(folder, ignore_errors=True)
            write_checkpoint(folder, name, entry)
            tensors = expected(name, entry, load(folder))
            save_file(tensors, folder / "expected.safetensors",
                      metadata={"transformers": transformers.__version__, "torch": torch.__version__})
            for file in folder.iterdir():
                file.chmod(0o644)
            fine = report(name, load(folder), tensors) and fine
            continue
        want = load_file(folder / "expected.safetensors")
        got = expected(name, entry, load(folder))
        error = deviation_in_tolerances(got, want)
        print(f"{name}: {error:.3f} tolerances from the committed golden")
        fine = error < 0.2 and check_mistakes(name, entry, want) and fine
    total = sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file())
    print(f"families: {total:,} bytes")
    return 0 if fine and total <= BYTES_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
