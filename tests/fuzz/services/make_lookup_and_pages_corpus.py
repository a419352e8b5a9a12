#!/usr/bin/env python3
"""Writes the seeds of fuzz_lookup_and_pages into tests/fuzz/corpus: valid messages and named hostile
ones, each behind the byte that says which message it is. Files that fuzzing has found lie beside
them and are left alone."""

import pathlib
import sys

sys.dont_write_bytecode = True
from wire import fixed32, number, text, varint  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "corpus" / "fuzz_lookup_and_pages"


def seeds():
    hashes = bytes(range(96))
    prompt = text(1, hashes) + number(2, 200)
    yield "lookup", b"\0" + text(1, prompt) * 2 + number(2, 8) + b"\x19" + b"\0\0\0\0\0\0\xd0\x3f"
    yield "lookup_short_prompt", b"\0" + text(1, text(1, hashes) + number(2, 63))
    yield "lookup_hash_of_31_bytes", b"\0" + text(1, text(1, hashes[:31]))
    yield "lookup_many_prompts", b"\0" + text(1, b"") * 257
    yield "lookup_ratio_nan", b"\0" + text(1, prompt) + b"\x19" + b"\0\0\0\0\0\0\xf8\x7f"
    put = text(1, hashes[:32]) + fixed32(2, 1) + text(15, b"bytes")
    yield "put", b"\1" + text(1, put) * 2 + number(2, 2)
    yield "put_short_key", b"\1" + text(1, text(1, b"key"))
    yield "get", b"\2" + text(1, hashes[:32]) * 3
    yield "get_long_key", b"\2" + text(1, hashes[:33])
    hit = fixed32(2, 0xE3069283) + text(15, b"123456789")
    yield "got", b"\3" + text(1, hit) + text(1, number(1, 5)) + text(1, hit)
    yield "got_payload_twice", b"\3" + text(1, hit + text(15, b"other"))
    yield "got_page_larger_than_room", b"\3" + text(1, text(15, bytes(100)))
    yield "got_length_past_end", b"\3" + text(1, varint(15 << 3 | 2) + varint(1 << 40))
    yield "got_payload_past_its_page", b"\3" + varint(1 << 3 | 2) + varint(4) + text(15, b"123456789")
    yield "got_unknown_fields", b"\3" + number(9, 1) + text(1, number(8, 1) + hit) + text(7, b"x")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
