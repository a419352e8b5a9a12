#!/usr/bin/env python3
"""Measures a fixture model: repeating, questions, and KVzip against random eviction and SnapKV.

    eval_fixture_model.py MODEL_FOLDER [--lengths 2000 4500] [--documents 4] [--questions 40] [--json FILE]
    eval_fixture_model.py MODEL_FOLDER --file tests/fixtures/documents/demo.txt --questions 200

Documents come from the held-out side of the split (fixture_model/documents.py); --file measures one file instead. Prints
one table row per kind and length: next-byte accuracy while repeating (teacher-forced, with the profile's chunked repeat
inputs), then exact answers with the full cache and with the kept ratios, all questions sharing one compressed cache.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
import re

import torch

from fixture_model import documents, kvzip
from fixture_model.model import LlamaForCausalLM, load_pretrained
from fixture_model.profile import PromptProfile, fixture_profile

RATIOS = {"0.6": 600_000, "0.3": 300_000, "0.1": 100_000}
RANDOM_SEEDS = 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2000, 4500], help="context bytes (default: 2000 4500)")
    parser.add_argument("--kinds", nargs="*", default=documents.KINDS, choices=documents.KINDS)
    parser.add_argument("--documents", type=int, default=4, help="documents per kind and length (default: 4)")
    parser.add_argument("--questions", type=int, default=40, help="questions per document (default: 40)")
    parser.add_argument("--file", type=pathlib.Path, help="measure this one document instead of drawn ones")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full-only", action="store_true", help="skip the compressed caches")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    return parser.parse_args()


def file_document(path: pathlib.Path) -> documents.Document:
    """A file as a document; its `key = value`, `key=value` and `name: value` lines become lookups."""
    text = path.read_bytes()
    questions = []
    for match in re.finditer(rb"^([A-Za-z][\w.-]*(?: = |=|: ))(\S.*\n)", text, re.MULTILINE):
        if text.count(b"\n" + match.group(1)) <= 1:
            questions.append(documents.Question("lookup", match.group(1), match.group(2)))
    return documents.Document(path.name, text, questions)


def count_exact(model: LlamaForCausalLM, cache, profile: PromptProfile, questions, mask=None) -> collections.Counter:
    """Exact answers by kind of question; mask [L, H, n] or None for the full cache."""
    keep = None if mask is None else kvzip.protect_prefix(mask, len(profile.prefix))
    exact = collections.Counter()
    for question in questions:
        exact[question.kind] += kvzip.answers_exactly(model, cache, profile, question.prompt, question.answer, keep)
    return exact


def measure(model: LlamaForCausalLM, profile: PromptProfile, document: documents.Document, rng: random.Random,
            question_count: int, full_only: bool) -> collections.Counter:
    """All counts of one document, under names such as "bytes", "repeated", "asked", "full:lookup", "kvzip@0.3"."""
    context = list(document.text)
    questions = documents.draw_questions(rng, document, question_count)
    cache = kvzip.prefill(model, profile.prefix + context)
    score, repeated = kvzip.scores(model, cache, context, profile)
    counts = collections.Counter({"bytes": len(context), "repeated": repeated, "asked": len(questions)})
    for question in questions:
        counts[f"asked:{question.kind}"] += 1
    full = count_exact(model, cache, profile, questions)
    counts["full"] = sum(full.values())
    counts.update({f"full:{kind}": number for kind, number in full.items()})
    if full_only or not questions:
        return counts
    first = profile.question_ids(questions[0].prompt)
    for name, ratio in RATIOS.items():
        count = lambda mask: sum(count_exact(model, cache, profile, questions, mask).values())
        counts[f"kvzip@{name}"] = count(kvzip.keep_best(score, ratio))
        counts[f"random@{name}"] = sum(count(kvzip.keep_random(score.shape, ratio, s)) for s in range(RANDOM_SEEDS)) / RANDOM_SEEDS
        counts[f"snapkv@{name}"] = count(kvzip.keep_snapkv(model, cache, len(profile.prefix), first, ratio))
    return counts


def head_summary(score: torch.Tensor) -> str:
    """Which (layer, head) hold high scores: `layer.head share-of-positions-above-0.1`."""
    share = (score > -2.3).float().mean(dim=2)
    entries = [f"{l}.{h} {share[l, h]:.2f}" for l in range(share.shape[0]) for h in range(share.shape[1]) if share[l, h] > 0.01]
    return ", ".join(entries)


def table_row(label: str, counts: collections.Counter, full_only: bool) -> str:
    rate = lambda name, total: f"{counts[name] / counts[total]:.3f}" if counts[total] else "-"
    cells = [label, f"{counts['repeated'] / counts['bytes']:.4f}"]
    cells += [rate(f"full:{kind}", f"asked:{kind}") for kind in ("suffix", "lookup", "needle")]
    cells.append(f"{int(counts['full'])}/{counts['asked']}")
    if not full_only:
        cells += [" / ".join(rate(f"{m}@{name}", "asked") for name in RATIOS) for m in ("kvzip", "random", "snapkv")]
    return "| " + " | ".join(cells) + " |"


def print_header(full_only: bool) -> None:
    columns = ["document", "repeat", "suffix", "lookup", "needle", "full cache"]
    if not full_only:
        columns += [f"{m} {' / '.join(RATIOS)}" for m in ("kvzip", "random", "snapkv")]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model, profile = load_pretrained(arguments.model), fixture_profile()
    results = {}
    print_header(arguments.full_only)
    if arguments.file:
        jobs = [(arguments.file.name, [lambda rng: file_document(arguments.file)])]
    else:
        corpus = documents.load_corpus(held_out=True)
        jobs = [(f"{kind} {length}", [lambda rng, kind=kind, length=length: documents.make_document(rng, corpus, kind, length)]
                 * arguments.documents) for length in arguments.lengths for kind in arguments.kinds]
    for label, makers in jobs:
        rng, counts = random.Random(f"{arguments.seed} {label}"), collections.Counter()  # rows do not depend on each other
        for make in makers:
            counts.update(measure(model, profile, make(rng), rng, arguments.questions, arguments.full_only))
        print(table_row(label, counts, arguments.full_only), flush=True)
        results[label] = dict(counts)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
