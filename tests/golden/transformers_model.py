"""What the generators that run models through transformers share. Imports torch and transformers: only they import it."""

from __future__ import annotations

import contextlib

import torch
import transformers


def set_up() -> None:
    """One order of summation, and no chatter."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def text_model(model: torch.nn.Module) -> torch.nn.Module:
    """The stack of decoder layers: model.model, or model.model.language_model beside a vision tower."""
    return getattr(model.model, "language_model", model.model)


@contextlib.contextmanager
def replaced(owner, name: str, value):
    """`owner.name` is `value` meanwhile: how a mistake is made on purpose."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)
