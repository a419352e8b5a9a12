"""Trains the tables of the copy circuit on the task itself, before they are written into a model.

The circuit of analytic.py is a retrieval: the window before each byte of a document is its key, the window before the byte
to predict is the query, attention is softmax(SHARPNESS * <query, key>). With embedding, shifts and LM head idealised, what
remains is differentiable and tiny, so thousands of questions a second train the code tables and the importance of the
window indices. The loss is the probability mass that attention puts on positions holding the right byte.
"""

from __future__ import annotations

import dataclasses
import json
import random

import torch
import torch.nn.functional as F

from . import documents
from .profile import PromptProfile

QUESTIONS, REPEATED = 48, 128  # per step: questions of the document, and positions of a repetition


@dataclasses.dataclass
class Tables:
    """codes: name -> unit rows [256, dims]; importance [window], summing to 1."""

    codes: dict[str, torch.Tensor]
    importance: torch.Tensor


def windows(ids: torch.Tensor, positions: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` bytes before each position, nearest first: [positions, size]."""
    return ids[positions[:, None] - 1 - torch.arange(size)[None, :]]


def retrieval_batch(rng: random.Random, profile: PromptProfile, document: documents.Document, size: int):
    """-> key windows [S, size], their bytes [S], query windows [Q, size], right bytes [Q]."""
    before = b"\0" * size + bytes(i for i in profile.prefix if i < 256) + document.text
    ids, start = torch.tensor(list(before)), len(before) - len(document.text)
    positions = torch.arange(start, len(before))
    sample = torch.tensor(rng.sample(range(start, len(before)), min(REPEATED, len(document.text))))
    queries, targets = [windows(ids, sample, size)], [ids[sample]]
    for question in documents.draw_questions(rng, document, QUESTIONS):
        asked = profile.question_ids(question.prompt)
        tail = torch.tensor(list(before[-size:]) + asked + list(question.answer))
        answer = torch.arange(size + len(asked), len(tail))
        queries.append(windows(tail, answer, size))
        targets.append(tail[answer])
    return windows(ids, positions, size), ids[positions], torch.cat(queries), torch.cat(targets)


def embed(window: torch.Tensor, layout: list[str], tables: Tables) -> torch.Tensor:
    """[N, size] -> [N, total dims]: the weighted codes side by side."""
    parts = [tables.codes[name][window[:, j]] * tables.importance[j].sqrt() for j, name in enumerate(layout)]
    return torch.cat(parts, dim=1)


def right_mass(batch, layout: list[str], tables: Tables, sharpness: float, sink: float) -> torch.Tensor:
    """Attention mass on positions that hold the right byte: [Q]."""
    keys, key_bytes, queries, targets = batch
    logits = sharpness * embed(queries, layout, tables) @ embed(keys, layout, tables).T
    logits = torch.cat((logits, torch.full((len(targets), 1), sharpness * sink)), dim=1)
    return (logits.softmax(dim=1)[:, :-1] * (key_bytes[None, :] == targets[:, None])).sum(dim=1)


def train(start: Tables, layout: list[str], sharpness: float, sink: float, profile: PromptProfile,
          corpus: dict[str, list[bytes]], steps: int, seed: int) -> Tables:
    """Adam on the tables (codes of one dimension are signs and stay). Prints a line every 100 steps."""
    rng = random.Random(seed)
    raw = {name: code.clone().requires_grad_(code.shape[1] > 1) for name, code in start.codes.items()}
    log_importance = start.importance.log().requires_grad_()
    free = [code for code in raw.values() if code.requires_grad] + [log_importance]
    optimizer = torch.optim.Adam(free, lr=0.01, betas=(0.9, 0.99))

    def current() -> Tables:
        return Tables({name: F.normalize(code, dim=1) for name, code in raw.items()}, log_importance.softmax(dim=0))

    right = total = 0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1.0 - 0.95 * step / steps)
        document = documents.make_document(rng, corpus, rng.choice(documents.KINDS), rng.randint(1000, 4500))
        batch = retrieval_batch(rng, profile, document, len(layout))
        mass = right_mass(batch, layout, current(), sharpness, sink)
        loss = -(mass + 1e-4).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right, total = right + int((mass > 0.5).sum()), total + len(mass)
        if step % 100 == 0:
            print(json.dumps({"codes_step": step, "of": steps, "right": round(right / total, 5)}), flush=True)
            right = total = 0
    tables = current()
    return Tables({name: code.detach() for name, code in tables.codes.items()}, tables.importance.detach())
