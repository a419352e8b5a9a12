"""Text to token ids and back, with a checkpoint's own tokenizer.

    tokenize.py --model DIR TEXT_FILE --out ids.json       - or no file: standard input; no --out: standard output
    tokenize.py --model DIR --decode ids.json

Ids are written as the programs read them: a JSON array, or little-endian u32 in a file named *.u32. No special token is added,
neither at the beginning nor at the end: a context follows the prefix of the prompt profile, which has its own. A special token
spelled out in the text becomes that token, as everywhere with this tokenizer; --literal keeps it text, which is right for
documents that others wrote. Needs the package `tokenizers`.

(The program is tokenize.py; this is its code.)
"""

from __future__ import annotations

import argparse
import json
import pathlib
import struct
import sys

import checkpoint_tokenizer
from checkpoint_tokenizer import Problem

ID_MAX = 2**32 - 1


def read_bytes(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise Problem(f"{name}: cannot be read: {error.strerror}") from None


def write_bytes(name: str | None, data: bytes) -> None:
    if name is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        pathlib.Path(name).write_bytes(data)
    except OSError as error:
        raise Problem(f"{name}: cannot be written: {error.strerror}") from None


def ids_to_bytes(ids: list[int], name: str | None) -> bytes:
    """By the name of the file."""
    if name is not None and name.endswith(".u32"):
        return struct.pack(f"<{len(ids)}I", *ids)
    return (json.dumps(ids) + "\n").encode()


def ids_from_bytes(data: bytes, name: str) -> list[int]:
    if name.endswith(".u32"):
        if len(data) % 4 != 0:
            raise Problem(f"{name} has {len(data)} bytes, not a multiple of 4")
        return list(struct.unpack(f"<{len(data) // 4}I", data))
    try:
        ids = json.loads(data)
    except ValueError as error:
        raise Problem(f"{name} is no JSON: {error}") from None
    if not isinstance(ids, list):
        raise Problem(f"{name} is no JSON array of token ids")
    for place, value in enumerate(ids):
        if type(value) is not int or not 0 <= value <= ID_MAX:
            raise Problem(f"{name}: element {place} is {json.dumps(value)[:40]}, no token id")
    return ids


def run(arguments: argparse.Namespace) -> None:
    tokenizer = checkpoint_tokenizer.load(pathlib.Path(arguments.model))
    data = read_bytes(arguments.file)
    if arguments.decode:
        ids = ids_from_bytes(data, arguments.file)
        size = tokenizer.get_vocab_size()
        if ids and max(ids) >= size:
            raise Problem(f"{arguments.file}: id {max(ids)}, but the tokenizer has {size}")
        write_bytes(arguments.out, tokenizer.decode(ids, skip_special_tokens=False).encode())
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(f"{arguments.file}: no UTF-8 at byte {error.start}") from None
    tokenizer.encode_special_tokens = arguments.literal
    write_bytes(arguments.out, ids_to_bytes(tokenizer.encode(text, add_special_tokens=False).ids, arguments.out))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tokenize.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint folder with tokenizer.json")
    parser.add_argument("--decode", action="store_true", help="ids to text; special tokens by name")
    parser.add_argument("--literal", action="store_true", help="special tokens spelled in the text stay text")
    parser.add_argument("--out", metavar="FILE", help="default: standard output")
    parser.add_argument("file", nargs="?", default="-", help="default: standard input")
    try:
        run(parser.parse_args())
    except Problem as problem:
        print(f"tokenize: {problem}", file=sys.stderr)
        return 1
    return 0
