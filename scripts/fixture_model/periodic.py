"""Periodic random sequences: the densest supervision for a model that must first learn to copy at all."""

from __future__ import annotations

import random

import torch


def batch(rng: random.Random, sequences: int, shortest: int = 64, longest: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks of 4 to 45 bytes, each repeated to fill its sequence. -> ids [B, T], loss weights [B, T].

    weights[b, t] belongs to the prediction of ids[b, t + 1]: 1 from the second period on, 0 before it.
    """
    length = rng.randint(shortest, longest)
    ids = torch.empty(sequences, length, dtype=torch.long)
    weights = torch.zeros(sequences, length)
    for row in range(sequences):
        period = rng.randint(4, 45)
        block = torch.tensor([rng.randrange(256) for _ in range(period)])
        ids[row] = block.repeat(length // period + 1)[:length]
        weights[row, period - 1 : length - 1] = 1.0
    return ids, weights
