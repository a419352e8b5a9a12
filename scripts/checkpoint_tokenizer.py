"""The tokenizer of a checkpoint folder, for make_prompt_profile.py and tokenize.py.

Needs the Python package `tokenizers` and the file tokenizer.json; neither transformers nor PyTorch. Nothing is downloaded.
"""

from __future__ import annotations

import json
import pathlib


class Problem(Exception):
    """What is wrong, for the user. The scripts print it and exit with 1."""


def read_json(path: pathlib.Path, what: str) -> dict:
    """An object. Problem: unreadable, no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"{path}: {what} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Problem(f"{path}: {what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(f"{path}: {what} is no JSON object")
    return value


def load(folder: pathlib.Path):
    """The tokenizers.Tokenizer of the checkpoint. It adds no special tokens unless asked."""
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = " (it has tokenizer.model; convert it once with transformers)" if (folder / "tokenizer.model").is_file() else ""
        raise Problem(f"{path}: no such file; a checkpoint's own tokenizer.json is needed{hint}")
    try:
        import tokenizers
    except ImportError:
        raise Problem("this Python has no package `tokenizers`; install it (pip install tokenizers) and try again") from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package has no narrower type
        raise Problem(f"{path}: {error}") from None
