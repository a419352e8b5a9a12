#!/usr/bin/env python3
"""Writes scores/: KVzip scores and kept sets from kvpress and from the written definition (kvzip_numpy.py).

    build/golden-venv/bin/python tests/golden/make_score_golden.py [--only NAME] [--check]     (requirements.txt beside it)

Models: some of families/ and the fixture model, upcast and computed by transformers in fp64 (cos and sin of RoPE as always in
fp32): two evaluations of the fixture model in fp32 differ by 1e-4 and more in single log scores, as each of them is up to 8e-5
away from this. Token ids are recorded, so that another implementation can be driven with the same ones; README.md lists the
tensors.

kvpress_NAME.safetensors: kvpress.KVzipPress as published, untouched; only its tokenizer is a stand-in that knows the texts it
will be asked for (an unknown text is an error), because tiny models have none.

definition_NAME.safetensors: queries, keys, values, attention inputs and output projections are caught while transformers
computes prefix ++ context ++ repeat input in one pass without a cache (equal to the repeat pass, because every repeat input
starts right after the context); kvzip_numpy.py does the rest in fp64.

--check compares with the committed files, and then scores with one mistake at a time (no hint, a repeat pass that starts one
position late, ...): each that a setting can show must move some log score by at least 10 tolerances.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import logging
import pathlib
import sys
import types

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

import kvzip_numpy
from transformers_model import replaced, set_up, text_model

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "scores"
FIXTURE = ROOT / "tests" / "fixtures" / "model"
DOCUMENTS = ROOT / "tests" / "fixtures" / "documents"
REMOVED = [0.1, 0.5, 0.7, 0.9]              # kvpress's compression ratios
MILLIONTHS = [100_000, 300_000, 600_000]    # kept ratios of the definition
TOLERANCE = 1e-4  # of log scores


def random_ids(seed: int, count: int, vocabulary: int) -> list[int]:
    """Random ids in which a stretch comes twice."""
    ids = np.random.Generator(np.random.PCG64(seed)).integers(10, vocabulary, count)
    ids[count // 2:count // 2 + count // 5] = ids[3:3 + count // 5]
    return [int(i) for i in ids]


def fixture_ids(begin: int, count: int) -> list[int]:
    return list((DOCUMENTS / "demo.txt").read_bytes()[begin:begin + count])


def load(name: str, attention: str) -> torch.nn.Module:
    """In fp64, also where transformers' code asks for fp32: in the norms."""
    folder = FIXTURE if name == "fixture" else HERE / "families" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).double().eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm_in_double, module)
    return model


def norm_in_double(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    gemma = type(norm).__name__.startswith("Gemma")
    epsilon = norm.eps if gemma else norm.variance_epsilon
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * (norm.weight + 1.0 if gemma else norm.weight)


def attention_in_double(attention: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                        mask: torch.Tensor) -> torch.Tensor:
    """What "eager" computes, without its fp32 softmax. [1, rows, query heads, head_dim]"""
    groups = attention.num_key_value_groups
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return ((query @ key.transpose(2, 3) * attention.scaling + mask).softmax(dim=-1) @ value).transpose(1, 2).contiguous()


def array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def i32(values) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


# --- kvpress ------------------------------------------------------------------------------------------------------------------

FIRST_TEXT = "\n\nRepeat the previous context exactly."
LATER_TEXT = "\n\nRepeat the part of the previous context exactly, starting with"

# What differs: no prefix at all, one shorter than kvpress's four sinks, a longer one; one chunk, several, a last chunk of one.
KVPRESS = {
    "llama_linear_tied": dict(prefix=[], suffix=[5, 9], first=[7, 30, 31, 8], later=[7, 33, 34, 35, 8], chunk=2048,
                              context=lambda: random_ids(101, 91, 97)),
    "llama_yarn_mscale": dict(prefix=[], suffix=[5], first=[7, 30, 31, 8], later=[7, 33, 8], chunk=30,
                              context=lambda: random_ids(102, 91, 101)),
    "qwen2_tied": dict(prefix=[1, 17, 42, 43, 44, 45], suffix=[5, 9, 6], first=[7, 30], later=[7, 33, 34], chunk=31,
                       context=lambda: random_ids(103, 83, 101)),
    "qwen3_yarn": dict(prefix=[1, 17, 42], suffix=[5, 9], first=[7, 30, 31, 8], later=[7, 33, 34, 35, 8], chunk=29,
                       context=lambda: random_ids(104, 97, 113)),
    "fixture": dict(prefix=[256, *b"Read this:\n"], suffix=[10], first=list(FIRST_TEXT.encode()),
                    later=list(LATER_TEXT.encode()), chunk=200, context=lambda: fixture_ids(0, 601)),
}


class StandInTokenizer:
    """The calls that KVzipPress makes, answered from a table."""

    def __init__(self, setting: dict) -> None:
        self.chat_template = "a template" if setting["prefix"] else None
        suffix = "<suffix>" if setting["prefix"] else "\n"  # "\n" is kvpress's own without a template
        self.ids = {"<prefix>" if setting["prefix"] else "": setting["prefix"], suffix: setting["suffix"],
                    FIRST_TEXT: setting["first"], LATER_TEXT: setting["later"]}

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, enable_thinking):
        assert add_generation_prompt and not tokenize and not enable_thinking
        return f"<prefix>{messages[0]['content']}<suffix>"

    def encode(self, text, return_tensors, add_special_tokens):
        assert return_tensors == "pt" and not add_special_tokens
        return torch.tensor([self.ids[text]], dtype=torch.int64)


def run_kvpress(model: torch.nn.Module, setting: dict, removed: float, plus: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores as kvpress had them before it selects, the kept mask, and the logits of the last context token."""
    from kvpress.presses import kvzip_press

    class Recording(kvzip_press.KVzipPress):
        def compress_post(self, model):
            self.scores = self.score_val[:, 0].clone()
            super().compress_post(model)

    class Tokenizers:
        from_pretrained = staticmethod(lambda _: StandInTokenizer(setting))

    press = Recording(compression_ratio=removed, kvzip_plus_normalization=plus, chunk_size=setting["chunk"])
    ids = setting["prefix"] + setting["context"]()
    kept_class, kvzip_press.AutoTokenizer = kvzip_press.AutoTokenizer, Tokenizers
    torch.set_default_dtype(torch.float64)  # kvpress makes its mask in the default type
    try:
        with torch.no_grad(), press(model):
            cache = DynamicCache()
            hidden = model.model(input_ids=torch.tensor([ids]), past_key_values=cache).last_hidden_state
            logits = model.lm_head(hidden)[0, -1]
    finally:
        torch.set_default_dtype(torch.float32)
        kvzip_press.AutoTokenizer = kept_class
    assert cache.get_seq_length() == len(ids)
    kept = torch.ones(press.scores.shape, dtype=torch.uint8)
    for layer in model.model.layers:
        _, heads, positions = layer.self_attn.masked_key_indices
        kept[layer.self_attn.layer_idx, heads, positions] = 0
        layer.self_attn.masked_key_indices = None
    return press.scores, kept, logits


def kvpress_golden(name: str) -> dict[str, torch.Tensor]:
    setting = KVPRESS[name]
    model = load(name, "sdpa")  # kvpress refuses "eager"
    context = setting["context"]()
    tensors = {"prefix": i32(setting["prefix"]), "context": i32(context), "postfix": i32(setting["suffix"]),
               "first_prompt": i32(setting["first"]), "later_prompt": i32(setting["later"]),
               "chunk_tokens": i32([setting["chunk"]]), "removed": torch.tensor(REMOVED, dtype=torch.float64)}
    for recipe, plus in {"kvpress": False, "kvpress+": True}.items():
        results = [run_kvpress(model, setting, removed, plus) for removed in REMOVED]
        assert all(torch.equal(scores, results[0][0]) for scores, _, _ in results)
        tensors[f"{recipe}.scores"] = results[0][0].float().contiguous()
        tensors[f"{recipe}.kept"] = torch.stack([kept for _, kept, _ in results])
        tensors["last_logits"] = results[0][2].float()
        for removed, (scores, kept, _) in zip(REMOVED, results):
            by_rule = kvzip_numpy.keep_kvpress(scores.numpy(), removed)
            different = int((by_rule != kept.numpy()).sum())
            print(f"  {recipe} removed {removed}: kept {int(kept.sum())} of {kept.numel()}, {different} pairs differ from the rule")
            if different:  # only among equal scores
                values = scores.numpy()[by_rule != kept.numpy()]
                assert values.min() == values.max(), "kvpress does not follow the rule as written down"
    compare_with_definition(name, tensors)
    return tensors


def compare_with_definition(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """The transcription, with kvpress's sinks in place of the prefix, gives what kvpress computed."""
    profile = {field: tensors[field].tolist() for field in ("postfix", "first_prompt", "later_prompt")}
    profile |= {"hint_tokens": 8, "chunk_tokens": int(tensors["chunk_tokens"])}
    prefix = tensors["prefix"].tolist()
    scores, _ = definition_scores(load(name, "eager"), prefix, profile, tensors["context"].tolist(), ("kvzip", "kvzip+"), sinks=4)
    for ours, theirs in {"kvzip": "kvpress", "kvzip+": "kvpress+"}.items():
        want = tensors[f"{theirs}.scores"][:, :, len(prefix):].double().numpy()
        read = want > 1e-30
        error = np.abs(scores[ours][read] - np.log(want[read])).max()
        print(f"  {theirs} against the definition: log scores differ by at most {error:.1e}; {int((~read).sum())} scores below 1e-30")
        assert error < 1e-6


# --- the definition -----------------------------------------------------------------------------------------------------------

TINY_PROFILE = {"postfix": [5, 9], "first_prompt": [7, 30, 31, 8], "later_prompt": [7, 33, 34, 35, 8], "hint_tokens": 8}

# What differs: no prefix, one chunk, several, a last chunk of one token, hints cut short by the chunk, window layers.
DEFINITION = {
    "llama_linear_tied": dict(prefix=[], profile=TINY_PROFILE | {"chunk_tokens": 37}, context=lambda: random_ids(201, 91, 97)),
    "llama_llama3_rope": dict(prefix=[1, 17, 42], profile=TINY_PROFILE | {"chunk_tokens": 2000},
                              context=lambda: random_ids(202, 83, 131)),
    "qwen2_tied": dict(prefix=[1, 17, 42, 43, 44, 45, 46], profile=TINY_PROFILE | {"chunk_tokens": 30},
                       context=lambda: random_ids(203, 91, 101)),
    "qwen3_yarn": dict(prefix=[1, 17, 42], profile=TINY_PROFILE | {"chunk_tokens": 5}, context=lambda: random_ids(204, 43, 113)),
    "gemma3_nested_v4": dict(prefix=[1, 17, 42, 43], profile=TINY_PROFILE | {"chunk_tokens": 31},
                             context=lambda: random_ids(205, 83, 90)),
    "gemma3_nested_v5": dict(prefix=[1, 17, 42, 43], profile=TINY_PROFILE | {"chunk_tokens": 31},
                             context=lambda: random_ids(206, 83, 90)),
    "fixture": dict(prefix=None, profile=None, context=lambda: fixture_ids(3000, 1001)),
}


def setting_of(name: str) -> tuple[list[int], dict, list[int]]:
    """prefix, profile, context. For the fixture model its own profile."""
    setting = DEFINITION[name]
    if setting["profile"] is not None:
        return setting["prefix"], setting["profile"], setting["context"]()
    profile = json.loads((FIXTURE / "kvtier_prompt_profile.json").read_text())
    return profile["prefix"], profile, setting["context"]()


@contextlib.contextmanager
def caught(model: torch.nn.Module):
    """Yields {layer: {"queries", "keys", "values", "inputs"}} of the last pass; queries and keys after norm and RoPE."""
    found: dict[int, dict] = {}
    module = importlib.import_module(type(text_model(model)).__module__)
    original = module.eager_attention_forward

    def recording(attention, query, key, value, *args, **kwargs):
        found.setdefault(attention.layer_idx, {}).update(queries=array(query[0]), keys=array(key[0]), values=array(value[0]))
        if query.dtype == torch.float64:
            return attention_in_double(attention, query, key, value, args[0]), None
        return original(attention, query, key, value, *args, **kwargs)

    def note_input(attention, args, kwargs):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        found.setdefault(attention.layer_idx, {})["inputs"] = array(hidden[0])

    hooks = [layer.self_attn.register_forward_pre_hook(note_input, with_kwargs=True) for layer in text_model(model).layers]
    module.eager_attention_forward = recording
    try:
        yield found
    finally:
        module.eager_attention_forward = original
        for hook in hooks:
            hook.remove()


def scored_layers(model: torch.nn.Module) -> list[int]:
    """Global attention only."""
    kinds = getattr(text_model(model).config, "layer_types", None) or []
    return [i for i in range(len(text_model(model).layers)) if not kinds or kinds[i] == "full_attention"]


def definition_scores(model: torch.nn.Module, prefix: list[int], profile: dict, context: list[int],
                      variants=("kvzip", "kvzip+", "full-softmax"), sinks: int | None = None, late: int = 0,
                      split_heads=lambda rows: rows) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """Log scores [scored layers, H, n_c] of each variant, and the logits of the last context token. `late`: positions by which
    the repeat inputs start too late, and `split_heads`: what is done to the queries [H, G, rows, D]; both only for mistakes."""
    layers = scored_layers(model)
    attention = [text_model(model).layers[layer].self_attn for layer in layers]
    known = len(prefix) + len(context)
    parts: dict[str, list] = {variant: [] for variant in variants}
    places = kvzip_numpy.chunks(len(context), profile["chunk_tokens"])
    for (begin, end), repeat in zip(places, kvzip_numpy.repeat_inputs(context, profile)):
        with torch.no_grad(), caught(model) as found:
            positions = torch.arange(known + len(repeat))
            positions[known:] += late
            logits = model(torch.tensor([prefix + context + repeat]), position_ids=positions[None], use_cache=False).logits[0, known - 1]
        for variant in variants:
            scores = []
            for layer, module in zip(layers, attention):
                keys, width = found[layer]["keys"], found[layer]["inputs"].shape[1]
                heads, _, dim = keys.shape
                queries = found[layer]["queries"].reshape(heads, -1, known + len(repeat), dim)
                output = array(module.o_proj.weight.detach()).reshape(width, heads, -1, dim).transpose(1, 2, 0, 3)
                scores.append(kvzip_numpy.score_chunk(
                    variant, split_heads(queries)[:, :, known:], keys[:, :known], keys[:, known:], len(prefix), begin, end, module.scaling,
                    found[layer]["values"][:, :known], found[layer]["inputs"][known:], output,
                    None if sinks is None else min(sinks, len(prefix) + begin)))
            parts[variant].append(np.stack(scores))
    return {variant: np.concatenate(chunks, axis=2) for variant, chunks in parts.items()}, logits


def definition_golden(name: str) -> dict[str, torch.Tensor]:
    prefix, profile, context = setting_of(name)
    model = load(name, "eager")
    all_scores, logits = definition_scores(model, prefix, profile, context)
    first = not prefix
    tensors = {"prefix": i32(prefix), "context": i32(context), "postfix": i32(profile["postfix"]),
               "first_prompt": i32(profile["first_prompt"]), "later_prompt": i32(profile["later_prompt"]),
               "hint_tokens": i32([profile["hint_tokens"]]), "chunk_tokens": i32([profile["chunk_tokens"]]),
               "scored_layers": i32(scored_layers(model)), "last_logits": logits.float(), "millionths": i32(MILLIONTHS)}
    for t, ids in enumerate(kvzip_numpy.repeat_inputs(context, profile)):
        tensors[f"repeat.{t}"] = i32(ids)

    def put_kept(recipe, select):
        tensors[f"{recipe}.kept"] = torch.from_numpy(np.stack([select(millionths) for millionths in MILLIONTHS]))

    for recipe, scores in all_scores.items():
        tensors[f"{recipe}.log_scores"] = torch.from_numpy(scores.astype(np.float32))
        put_kept(recipe, lambda millionths: kvzip_numpy.keep_exact(scores, millionths, first))
    scores = all_scores["kvzip"]
    heads = scores.max(axis=2)
    tensors["head.log_scores"] = torch.from_numpy(heads.astype(np.float32))
    put_kept("uniform", lambda millionths: kvzip_numpy.keep_uniform(scores, millionths, first))
    put_kept("head", lambda millionths: kvzip_numpy.keep_heads(heads, millionths))
    print(f"  {len(context)} tokens, {len(scores)} layers: log scores {scores.min():.2f} to {scores.max():.2f}, median "
          f"{np.median(scores):.2f}; kvzip+ {all_scores['kvzip+'].min():.2f} to {all_scores['kvzip+'].max():.2f}; "
          f"kept at 0.3 by layer {tensors['kvzip.kept'][1].float().mean(dim=(1, 2)).numpy().round(2)}")
    assert (all_scores["full-softmax"] <= scores + 1e-12).all()
    return tensors


# --- mistakes -----------------------------------------------------------------------------------------------------------------

def mistakes(model: torch.nn.Module, prefix: list[int], profile: dict, context: list[int]):
    """Yields (name, scores) with one thing wrong."""
    exact_row_logits = kvzip_numpy.row_logits

    def sees_next(query_rows, cache_keys, repeat_keys, scale):
        logits = exact_row_logits(query_rows, cache_keys, repeat_keys, scale)
        return np.concatenate([logits, (scale * query_rows * np.roll(repeat_keys, -1, axis=0)).sum(axis=1, keepdims=True)], axis=1)

    def scores(changed=None, **options):
        return definition_scores(model, prefix, profile | (changed or {}), context, **options)[0]

    yield "hint one token shorter", scores({"hint_tokens": profile["hint_tokens"] - 1})
    yield "the first prompt for every chunk", scores({"later_prompt": profile["first_prompt"]})
    yield "no postfix", scores({"postfix": []})
    yield "chunks one token longer", scores({"chunk_tokens": profile["chunk_tokens"] + 1})
    yield "prefix not in the normaliser", scores(sinks=0)
    yield "four sinks in place of the prefix", scores(sinks=4)
    yield "repeat starts one position late", scores(late=1)
    yield "only the first query head of a group", scores(split_heads=lambda rows: rows[:, :1])
    yield "query heads dealt out in turn", scores(
        split_heads=lambda rows: rows.reshape(-1, rows.shape[0], *rows.shape[2:]).swapaxes(0, 1))
    with replaced(kvzip_numpy, "row_logits", sees_next):
        yield "rows see the next row's key", scores()
    scaled = [layer.self_attn for layer in text_model(model).layers]
    kept = [module.scaling for module in scaled]
    for module in scaled:
        module.scaling = module.head_dim ** -0.5
    yield "softmax scale of head_dim", scores()
    for module, scaling in zip(scaled, kept):
        module.scaling = scaling


def check_mistakes(name: str) -> bool:
    prefix, profile, context = setting_of(name)
    model = load(name, "eager")
    exact, _ = definition_scores(model, prefix, profile, context)
    fine = True
    for label, scores in mistakes(model, prefix, profile, context):
        moved = max(float(np.abs(scores[recipe] - exact[recipe]).max()) for recipe in exact) / TOLERANCE
        fine = fine and (moved == 0.0 or moved >= 10)
        print(f"  {label}: " + ("has no effect here" if moved == 0.0 else f"{moved:.0f} tolerances"))
    return fine


# --- main ---------------------------------------------------------------------------------------------------------------------

def same(name: str, got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    fine = got.keys() == want.keys()
    for key in want:
        if want[key].dtype != torch.float32:
            different = int((got[key] != want[key]).sum())
            if different:
                print(f"{name} {key}: {different} entries differ")
            fine = fine and (different == 0 or key.endswith(".kept"))  # pairs at the threshold; their scores are compared
            continue
        a, b = got[key].double(), want[key].double()
        if key.endswith(".scores"):
            a, b = a.clamp(min=1e-30).log(), b.clamp(min=1e-30).log()
        error = float((a - b).abs().max())
        fine = fine and error <= TOLERANCE * max(1.0, float(b.pow(2).mean().sqrt()) if "logits" in key else 1.0)
        print(f"{name} {key}: max difference {error:.1e}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one file, without .safetensors")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    set_up()
    logging.disable(logging.WARNING)
    kvzip_numpy.self_test()
    GOLDEN.mkdir(exist_ok=True)
    makers = {f"kvpress_{name}": (kvpress_golden, name) for name in KVPRESS}
    makers |= {f"definition_{name}": (definition_golden, name) for name in DEFINITION}
    fine = True
    for file, (make, name) in makers.items():
        if arguments.only not in (None, file):
            continue
        print(file)
        path = GOLDEN / f"{file}.safetensors"
        tensors = make(name)
        if arguments.check:
            fine = same(file, tensors, load_file(path)) and fine
            if make is definition_golden and name != "fixture":
                fine = check_mistakes(name) and fine
            continue
        save_file(tensors, path, metadata={"transformers": transformers.__version__, "torch": torch.__version__,
                                           "kvpress": importlib.metadata.version("kvpress")})
        path.chmod(0o644)
        print(f"  {path.stat().st_size:,} bytes")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
