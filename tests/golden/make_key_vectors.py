#!/usr/bin/env python3
"""Golden vectors of keys and token-block hashes, written from docs/object_format.md alone: it shares
no code with kvcache/, so that the two check each other.

    make_key_vectors.py           writes key_vectors.json beside this file
    make_key_vectors.py --check   fails if that file differs from what would be written
"""

import hashlib
import json
import pathlib
import struct
import sys

FILE = pathlib.Path(__file__).resolve().parent / "key_vectors.json"
BLOCK_TOKENS = 64
TEXT, DIGEST, ENUM, TOKEN_IDS = 1, 2, 3, 4
DTYPES = {"f32": 1, "f16": 2, "bf16": 3}


def field(tag, kind, payload):
    return struct.pack("<HBQ", tag, kind, len(payload)) + payload


def tokens(ids):
    return struct.pack(f"<{len(ids)}I", *ids)


def encode_head(d):
    return b"".join([
        b"KVTKEYDS", struct.pack("<I", 1),
        field(1, TEXT, d["tenant_salt"].encode()),
        field(2, DIGEST, bytes.fromhex(d["model_digest"])),
        field(3, TEXT, d["adapter"].encode()),
        field(4, ENUM, bytes([DTYPES[d["kv_dtype"]]])),
        field(5, TEXT, d["rope"].encode()),
        field(6, DIGEST, bytes.fromhex(d["prompt_profile_digest"])),
        field(7, TEXT, d["recipe"].encode()),
        field(8, TOKEN_IDS, tokens(d["system_token_ids"])),
    ])


def complete(d):
    """Adds what follows from the fields."""
    head = encode_head(d)
    context = d["context_token_ids"]
    canonical = head + field(9, TOKEN_IDS, tokens(context))
    hashes = []
    previous = hashlib.sha256(head).digest()
    for begin in range(0, len(context) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = tokens(context[begin:begin + BLOCK_TOKENS])
        previous = hashlib.sha256(previous + block).digest()
        hashes.append(previous.hex())
    return d | {
        "canonical_hex": canonical.hex(),
        "key": hashlib.sha256(canonical).hexdigest(),
        "head_digest": hashlib.sha256(head).hexdigest(),
        "token_block_hashes": hashes,
    }


def derived(vector, recipe):
    """The key of a rectangle that is cut from the vector's object."""
    text = recipe.encode()
    data = (b"KVTKEYDV" + struct.pack("<I", 1) + bytes.fromhex(vector["key"])
            + struct.pack("<I", len(text)) + text)
    return {"from": vector["name"], "recipe": recipe, "key": hashlib.sha256(data).hexdigest()}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def descriptors():
    base = {
        "name": "object_format_example",
        "tenant_salt": "default",
        "model_digest": digest("model"),
        "adapter": "",
        "kv_dtype": "bf16",
        "rope": "default theta=10000 dim=4",
        "prompt_profile_digest": digest("profile"),
        "recipe": "kvzip/1",
        "system_token_ids": [1],
        "context_token_ids": [10, 11, 12, 13, 14],
    }
    yield base
    yield base | {"name": "no_system_tokens_ten_context_tokens", "system_token_ids": [],
                  "context_token_ids": list(range(10))}
    yield base | {"name": "no_context", "context_token_ids": []}
    yield base | {"name": "two_hundred_tokens", "adapter": "lora-a " + digest("adapter"),
                  "kv_dtype": "f16", "system_token_ids": [128000, 128006, 9125],
                  "context_token_ids": [(i * 2654435761 + 12345) % 128256 for i in range(200)]}
    yield base | {"name": "one_full_block", "kv_dtype": "f32",
                  "context_token_ids": list(range(BLOCK_TOKENS))}
    yield base | {"name": "one_token_short_of_a_block",
                  "context_token_ids": list(range(BLOCK_TOKENS - 1))}
    yield base | {"name": "text_beyond_ascii_and_largest_id", "tenant_salt": "caf\u00e9-\u6771\u4eac",
                  "recipe": "kvzip/1 chunk=4000", "context_token_ids": [0, 1, 0xFFFFFFFF]}
    # Every recipe, and the recipe's options.
    for name, recipe in [("kvpress", "kvpress/1"), ("kvzip_plus", "kvzip+/1"),
                         ("uniform", "uniform/1"), ("full_softmax", "full-softmax/1"),
                         ("head", "head/1;scores=" + digest("head scores")),
                         ("kvzip_int8", "kvzip/1;codec=int8")]:
        yield base | {"name": f"recipe_{name}", "recipe": recipe}
    # One field changed alone.
    for name, value in [("tenant_salt", "other"), ("model_digest", digest("model 2")),
                        ("adapter", "lora"), ("kv_dtype", "f16"),
                        ("rope", "default theta=10001 dim=4"),
                        ("prompt_profile_digest", digest("profile 2")), ("recipe", "kvzip/2"),
                        ("system_token_ids", [1, 10]), ("context_token_ids", [10, 11, 12, 13, 15])]:
        yield base | {"name": f"example_with_other_{name}", name: value}
    # A token moved over the border between system prompt and context.
    yield base | {"name": "example_with_border_moved", "system_token_ids": [1, 10],
                  "context_token_ids": [11, 12, 13, 14]}


def render():
    vectors = [complete(d) for d in descriptors()]
    document = {
        "provenance": "written by tests/golden/make_key_vectors.py; grammar: docs/object_format.md",
        "token_block_tokens": BLOCK_TOKENS,
        "vectors": vectors,
        "derived_keys": [derived(vectors[0], recipe)
                         for recipe in ("kvzip/1;rect=layer", "kvzip/1;rect=object",
                                        "kvzip/1;rect=layer;codec=int4")],
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def main():
    text = render()
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not what {pathlib.Path(__file__).name} writes")
        return
    FILE.write_text(text)


main()
