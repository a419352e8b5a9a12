#!/usr/bin/env python3
"""Writes the seeds of fuzz_frames into tests/fuzz/corpus/fuzz_frames: messages of store.proto with payload, cut in many
ways, and named hostile ones. Files that fuzzing has found lie beside them and are left alone."""

import pathlib
import sys

sys.dont_write_bytecode = True
from wire import number, text, varint  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "corpus" / "fuzz_frames"


def cut(message, lengths=()):
    return bytes([len(lengths), *lengths]) + message


PAYLOAD = bytes(range(100))
FRAME = text(2, number(1, 5) + number(2, 300) + number(3, 1 << 33) + text(15, PAYLOAD))
CHUNK = text(2, number(1, 1 << 40) + text(15, PAYLOAD))
UNKNOWN = number(9, 150) + varint(10 << 3 | 1) + b"a" * 8 + varint(11 << 3 | 5) + b"b" * 4 + text(12, b"zz")
INNER = text(15, b"pay") + UNKNOWN + number(3, 9)

SEEDS = {
    "frame": cut(FRAME),
    "frame_byte_by_byte": cut(FRAME, [1] * len(FRAME)),
    "frame_tag_from_length": cut(FRAME, [1, 1, 1, 1]),
    "frame_empty_slices": cut(FRAME, [0, 3, 0, 0, 10, 0, 50]),
    "chunk": cut(CHUNK),
    "chunk_in_two": cut(CHUNK, [40]),
    "frame_of_nothing": cut(text(2, b"")),
    "header": cut(text(1, number(2, 3)), [2]),
    "no_field": cut(b""),
    "unknown_fields_any_order": cut(UNKNOWN + text(2, INNER) + UNKNOWN, [2] * 20),
    "payload_twice": cut(text(2, text(15, b"first") + text(15, b"the last")), [7, 3]),
    "frame_then_header": cut(FRAME + text(1, number(2, 3))),
    "hostile_frame_length_past_the_end": cut(b"\x12\x05\x08\x01", [3]),
    "hostile_payload_length_past_the_frame": cut(b"\x12\x03\x7a\x7fabbbbbbbb", [3]),
    "hostile_payload_runs_into_the_next_field": cut(b"\x12\x03\x7a\x03a\x48\x01", [4]),
    "hostile_length_overflow": cut(b"\x12" + b"\xff" * 9 + b"\x01", [5]),
    "hostile_inner_length_overflow": cut(text(2, b"\x7a" + b"\xff" * 9 + b"\x01")),
    "hostile_endless_number": cut(b"\xff" * 20, [9]),
    "hostile_truncated_number": cut(b"\x12\x02\x08\x80"),
    "hostile_group": cut(b"\x13"),
    "hostile_two_frames": cut(text(2, number(1, 1)) * 2, [5]),
    "hostile_wide_tag": cut(text(2, varint((1 << 35) + (15 << 3 | 2)) + b"\x01x")),
}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
