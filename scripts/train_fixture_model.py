#!/usr/bin/env python3
"""Makes the fixture model: analytic start, training, export. Everything is seeded; training resumes where it stopped.

    train_fixture_model.py init-analytic            train the code tables of the copy circuit on retrieval alone and
                                                    write them into a model      -> build/fixture-model/analytic/
    train_fixture_model.py train                    train the whole model        -> build/fixture-model/trained/
    train_fixture_model.py train --from-scratch     the same without the circuit -> build/fixture-model/scratch/
    train_fixture_model.py export                   best checkpoint -> tests/fixtures/model/ (config, bf16 weights, profile)

Then eval_fixture_model.py measures the exported folder. Needs PyTorch >= 1.13 and NumPy (Debian: python3-torch,
python3-numpy, and libopenblas0-pthread for speed), and no GPU.

Training mixes two kinds of sequence. A *task* sequence is prefix, document, then either repeat inputs exactly as KVzip feeds
them or a row of questions with their answers; the loss covers repeated bytes and answers fully and the document with a
small weight. A *periodic* sequence repeats a random block; from scratch it comes first, until copying has appeared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import random
import time

import torch
import torch.nn.functional as F

from fixture_model import analytic, codes, documents, kvzip, periodic
from fixture_model.model import LlamaForCausalLM, ModelConfig, load_pretrained, save_pretrained
from fixture_model.profile import PromptProfile, fixture_profile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "fixture-model"
FIXTURE = ROOT / "tests" / "fixtures" / "model"

DOCUMENT_WEIGHT = 0.03  # loss weight of the document itself: its entropy is mostly noise here
LONG_SHARE = 0.1  # share of task sequences with 2,000 to 4,800 bytes of context; the rest has 300 to 1,500
VALIDATION_DOCUMENTS, VALIDATION_LENGTH = 1, 1500  # per kind


# ---------------------------------------------------------------------------------------------------------------- data


def repeat_sequence(rng: random.Random, profile: PromptProfile, document: documents.Document):
    """Context and one repeat input of a random chunk. -> ids, indices [begin, end) of the bytes to predict."""
    context = list(document.text)
    begin, end, ids = rng.choice(profile.repeat_inputs(context))
    total = len(profile.prefix) + len(context) + len(ids)
    return profile.prefix + context + ids, [(total - (end - begin), total)]


def question_sequence(rng: random.Random, profile: PromptProfile, document: documents.Document):
    """Context and up to a dozen questions with their answers, one after the other."""
    ids, spans = profile.prefix + list(document.text), []
    for question in documents.draw_questions(rng, document, rng.randint(4, 12)):
        ids = ids + profile.question_ids(question.prompt)
        spans.append((len(ids), len(ids) + len(question.answer)))
        ids = ids + list(question.answer)
    return ids, spans


def task_sequence(rng: random.Random, profile: PromptProfile, corpus: dict[str, list[bytes]]):
    """-> ids [1, T], loss weights [1, T]; weights[t] belongs to the prediction of ids[t + 1]."""
    length = rng.randint(2000, 4800) if rng.random() < LONG_SHARE else rng.randint(300, 1500)
    document = documents.make_document(rng, corpus, rng.choice(documents.KINDS), length)
    make = repeat_sequence if rng.random() < 0.5 else question_sequence
    ids, spans = make(rng, profile, document)
    weights = torch.full((1, len(ids)), DOCUMENT_WEIGHT)
    weights[:, len(profile.prefix) + len(document.text) :] = 0.0
    for begin, end in spans:
        weights[0, begin - 1 : end - 1] = 1.0
    weights[0, -1] = 0.0
    return torch.tensor([ids]), weights


# ------------------------------------------------------------------------------------------------------------ training


@dataclasses.dataclass
class Run:
    """Everything a checkpoint holds, so that a resumed run continues bit for bit."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    rng: random.Random
    step: int = 0
    tokens: int = 0
    best: float = -1.0

    def save(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": self.rng.getstate(),
                 "step": self.step, "tokens": self.tokens, "best": self.best}
        torch.save(state, folder / "state.new")
        (folder / "state.new").rename(folder / "state.pt")

    def restore(self, folder: pathlib.Path) -> bool:
        """False if there is no checkpoint."""
        if not (folder / "state.pt").exists():
            return False
        state = torch.load(folder / "state.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.setstate(state["rng"])
        self.step, self.tokens, self.best = state["step"], state["tokens"], state["best"]
        return True


def weighted_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor):
    """-> (mean loss, correct, counted) over ids [B, T]; accuracy counts positions of weight 1."""
    hidden = model(ids, recompute=ids.shape[1] > 1024)
    batch, position = weights.nonzero(as_tuple=True)
    logits = model.lm_head(hidden[batch, position])
    target, weight = ids[batch, position + 1], weights[batch, position]
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    counted = weight == 1.0
    return loss, int((logits.argmax(-1) == target)[counted].sum()), int(counted.sum())


def validate(model: LlamaForCausalLM, profile: PromptProfile, corpus: dict[str, list[bytes]]) -> float:
    """Mean of repeat accuracy and exact-answer rate on fixed documents that neither training nor the final figures use."""
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict({name: t.to(torch.bfloat16).float() for name, t in model.state_dict().items()})
    rng, repeated, total, exact, asked = random.Random(99), 0, 0, 0, 0
    for kind in documents.KINDS:
        for _ in range(VALIDATION_DOCUMENTS):
            document = documents.make_document(rng, corpus, kind, VALIDATION_LENGTH)
            context = list(document.text)
            cache = kvzip.prefill(rounded, profile.prefix + context)
            repeated += kvzip.scores(rounded, cache, context, profile)[1]
            total += len(context)
            for question in documents.draw_questions(rng, document, 16):
                exact += kvzip.answers_exactly(rounded, cache, profile, question.prompt, question.answer)
                asked += 1
    print(f"  validation: repeat {repeated / total:.4f}, exact {exact}/{asked}", flush=True)
    return (repeated / total + exact / asked) / 2


def split_validation(corpus: dict[str, list[bytes]]) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    """Every tenth training text is set aside for validation."""
    train = {kind: [t for i, t in enumerate(texts) if i % 10] for kind, texts in corpus.items()}
    return train, {kind: texts[::10] for kind, texts in corpus.items()}


def learning_rate(arguments: argparse.Namespace, step: int) -> float:
    """Warm-up over 20 steps, then linear decay to a tenth."""
    return arguments.lr * min(1.0, (step + 1) / 20) * (1.0 - 0.9 * min(1.0, step / arguments.steps))


def start_run(arguments: argparse.Namespace) -> tuple[Run, pathlib.Path]:
    """A new run from the analytic or a random start, or the checkpoint of an earlier sitting."""
    torch.manual_seed(arguments.seed)
    if arguments.from_scratch:
        model, folder = LlamaForCausalLM(ModelConfig()), WORK / "scratch"
    else:
        model, folder = load_pretrained(WORK / "analytic").train(), WORK / "trained"
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.0)
    run = Run(model, optimizer, random.Random(arguments.seed))
    print("resuming at step" if run.restore(folder) else "starting at step", run.step, flush=True)
    return run, folder


def train(arguments: argparse.Namespace) -> None:
    """Trains until --steps, checkpointing every --save-every steps; keeps the best validated weights as folder/best."""
    run, folder = start_run(arguments)
    profile = fixture_profile()
    corpus, validation = split_validation(documents.load_corpus(held_out=False))
    began, correct, counted = time.monotonic(), 0, 0
    while run.step < arguments.steps:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(arguments, run.step)
        run.optimizer.zero_grad()
        for _ in range(1 if run.step < arguments.periodic_steps else arguments.accumulate):
            if run.step < arguments.periodic_steps:
                ids, weights = periodic.batch(run.rng, 32)
            else:
                ids, weights = task_sequence(run.rng, profile, corpus)
            loss, right, seen = weighted_loss(run.model, ids, weights)
            loss.backward()
            correct, counted, run.tokens = correct + right, counted + seen, run.tokens + ids.numel()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.step += 1
        if run.step % arguments.report_every == 0:
            print(json.dumps({"step": run.step, "of": arguments.steps, "tokens": run.tokens, "loss": round(loss.item(), 4),
                              "accuracy": round(correct / max(1, counted), 4), "seconds": round(time.monotonic() - began)}),
                  flush=True)
            correct, counted = 0, 0
        if run.step % arguments.save_every == 0 or run.step == arguments.steps:
            score = validate(run.model, profile, validation)
            if score >= run.best:
                run.best = score
                save_pretrained(run.model, folder / "best")
            run.save(folder)


def init_analytic(arguments: argparse.Namespace) -> None:
    """Trains the circuit's tables and writes the model that uses them to build/fixture-model/analytic."""
    corpus, _ = split_validation(documents.load_corpus(held_out=False))
    frequency = documents.byte_frequency(corpus)
    tables = codes.train(analytic.initial_tables(frequency, arguments.seed), analytic.WINDOW_CODES, analytic.SHARPNESS,
                         analytic.SINK, fixture_profile(), corpus, arguments.code_steps, arguments.seed)
    model = analytic.initialise(ModelConfig(), tables, frequency, arguments.seed)
    save_pretrained(model, WORK / "analytic")
    print(f"wrote {WORK / 'analytic'}: {sum(p.numel() for p in model.parameters()):,} parameters")


def export(arguments: argparse.Namespace) -> None:
    """Copies a folder (default: the best trained weights) to tests/fixtures/model and writes the prompt profile."""
    source = arguments.source or WORK / "trained" / "best"
    save_pretrained(load_pretrained(source), FIXTURE)
    fixture_profile().save(FIXTURE / "kvtier_prompt_profile.json")
    print(f"exported {source} to {FIXTURE}: {(FIXTURE / 'model.safetensors').stat().st_size:,} bytes")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    starter = commands.add_parser("init-analytic", help="train the circuit's tables, write the analytic start")
    starter.set_defaults(run=init_analytic)
    starter.add_argument("--code-steps", type=int, default=800, help="training steps of the tables; 0 leaves them as spread")
    trainer = commands.add_parser("train", help="train, resuming if a checkpoint exists")
    trainer.set_defaults(run=train)
    trainer.add_argument("--steps", type=int, default=400)
    trainer.add_argument("--accumulate", type=int, default=4, help="task sequences per step")
    trainer.add_argument("--lr", type=float, default=1e-4)
    trainer.add_argument("--from-scratch", action="store_true", help="random start (use --lr 2e-3 --periodic-steps 5000)")
    trainer.add_argument("--periodic-steps", type=int, default=0, help="steps of periodic sequences that come first")
    trainer.add_argument("--report-every", type=int, default=5)
    trainer.add_argument("--save-every", type=int, default=50)
    exporter = commands.add_parser("export", help="write tests/fixtures/model")
    exporter.set_defaults(run=export)
    exporter.add_argument("--source", type=pathlib.Path, help="model folder to export")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
