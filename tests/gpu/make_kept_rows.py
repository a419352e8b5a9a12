#!/usr/bin/env python3
"""The rows that KVzip keeps of each head of the fixture model, for the benchmark's uneven decode.

    make_kept_rows.py BIN_DIR > tests/gpu/kept_rows.inc     # writes the file again
    make_kept_rows.py BIN_DIR --check tests/gpu/kept_rows.inc

Scores tests/fixtures/documents/demo.txt by `kvtier-eval score`, recipe kvzip at ratio 0.3, and counts the kept
pairs of each head. --check compares with a file instead: other processors round sums otherwise, so that a head
may differ by one row in a hundred of the document's.
"""

import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "fixtures" / "model"
DOCUMENT = ROOT / "tests" / "fixtures" / "documents" / "demo.txt"
RATIO = 0.3


def kept_rows(bin_dir):
    """Tokens of the document, and [layers][heads] kept of them."""
    with tempfile.TemporaryDirectory() as folder:
        ids = pathlib.Path(folder, "demo.u32")
        # The fixture model's vocabulary begins with the bytes.
        ids.write_bytes(b"".join(struct.pack("<I", byte) for byte in DOCUMENT.read_bytes()))
        out = pathlib.Path(folder, "scores.safetensors")
        subprocess.run([pathlib.Path(bin_dir, "kvtier-eval"), "score", "--model", MODEL, "--token_ids", ids,
                        "--recipe", "kvzip", "--ratio", str(RATIO), "--out", out],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        data = out.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    entry = json.loads(data[8:8 + length])["kept"]
    begin, end = entry["data_offsets"]
    kept = data[8 + length + begin:8 + length + end]
    layers, heads, tokens = entry["shape"]
    count = lambda row: sum(kept[row * tokens:(row + 1) * tokens])
    return tokens, [[count(layer * heads + head) for head in range(heads)] for layer in range(layers)]


def text(tokens, rows):
    lines = ["// Made by tests/gpu/make_kept_rows.py: rows that recipe kvzip keeps at ratio 0.3 of each head of the fixture",
             "// model, a line a layer, of the tokens of tests/fixtures/documents/demo.txt.",
             f"constexpr int64_t kKeptOfTokens = {tokens};",
             "constexpr int64_t kKeptRows[] = {"]
    lines += ["    " + ", ".join(map(str, layer)) + "," for layer in rows]
    return "\n".join(lines + ["};", ""])


def parse(path):
    content = pathlib.Path(path).read_text(encoding="utf-8")
    tokens = int(re.search(r"kKeptOfTokens = (\d+)", content).group(1))
    rows = [int(number) for number in re.findall(r"\d+", content.split("kKeptRows[] = {")[1])]
    return tokens, rows


def main(arguments):
    if len(arguments) not in (2, 4) or (len(arguments) == 4 and arguments[2] != "--check"):
        print(__doc__.strip().splitlines()[2].strip(), file=sys.stderr)
        return 2
    tokens, rows = kept_rows(arguments[1])
    if len(arguments) == 2:
        print(text(tokens, rows), end="")
        return 0
    flat = [count for layer in rows for count in layer]
    file_tokens, file_rows = parse(arguments[3])
    if file_tokens != tokens or len(file_rows) != len(flat):
        print(f"make_kept_rows: {arguments[3]}: {len(file_rows)} heads of {file_tokens} tokens, "
              f"the model has {len(flat)} of {tokens}")
        return 1
    worst = max(range(len(flat)), key=lambda head: abs(flat[head] - file_rows[head]))
    if abs(flat[worst] - file_rows[worst]) > tokens / 100:
        print(f"make_kept_rows: head {worst}: {file_rows[worst]} rows in {arguments[3]}, now {flat[worst]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
