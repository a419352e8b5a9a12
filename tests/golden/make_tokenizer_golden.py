#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer/ (a tiny tokenizer) and profiles/ (prompt profiles that go with it).

    build/golden-venv/bin/python tests/golden/make_tokenizer_golden.py [--check]     (requirements.txt beside it, and jinja2)

The tokenizer is a byte-level BPE of 64 merges over a fixture document with Llama 3's special tokens, its pre-tokenizer and a
chat template in its manner. The expected ids come from transformers' tokenizer and, for kvpress, from the calls that
KVzipPress makes; the texts are written out here once more. scripts/make_prompt_profile.py must give the same.
--check writes to a temporary folder and compares.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "fixtures" / "tokenizer"
PROFILES = pathlib.Path(__file__).with_name("profiles")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Words with their space, digits in threes, punctuation with its line ends, line ends, spaces: Llama 3's own expression.
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
            " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
            "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}")

AUTHORS = {"prefix": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
                     "<|start_header_id|>user<|end_header_id|>\n\n"
                     "Given the context, answer to the following question or request without explanation.\n\n",
           "postfix": "\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
           "first_prompt": "\n\nRepeat the previous context exactly.",
           "later_prompt": "\n\nRepeat the part of the previous context exactly, starting with ", "query_prefix": "\n\n"}


def write_tokenizer(folder: pathlib.Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + 64, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)
    text = (ROOT / "tests" / "fixtures" / "documents" / "kettle.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(SPECIAL)  # after the merges, as Llama 3 numbers them
    begin = tokenizer.token_to_id(SPECIAL[0])
    tokenizer.post_processor = processors.TemplateProcessing(  # a tokenizer that would add a token if it were let
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]} $B", special_tokens=[(SPECIAL[0], begin)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[4], "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": tokenizer.get_vocab_size()}) + "\n")


def kvpress_texts(tokenizer) -> dict[str, str]:
    """What KVzipPress does with a chat template."""
    mark = "\n" + "#" * len("dummy context")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "dummy context" + mark}], add_generation_prompt=True,
                                             tokenize=False, enable_thinking=False)
    context, suffix = rendered.split(mark)
    return {"prefix": context.split("dummy context")[0], "postfix": suffix, "first_prompt": AUTHORS["first_prompt"],
            "later_prompt": "\n\nRepeat the part of the previous context exactly, starting with", "query_prefix": "\n\n"}


def write_profiles(tokenizer_folder: pathlib.Path, folder: pathlib.Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts, chunk in (("llama-3", AUTHORS, 2000), ("kvpress", kvpress_texts(tokenizer), 2048)):
        profile = {"version": 1, "name": name}
        profile |= {field: tokenizer.encode(text, add_special_tokens=False) for field, text in texts.items()}
        everything = "".join(texts.values())
        profile |= {"hint_tokens": 8, "chunk_tokens": chunk, "special_tokens": {
            token: tokenizer.convert_tokens_to_ids(token) for token in sorted(SPECIAL) if token in everything}}
        (folder / f"{name}.json").write_text(json.dumps(profile) + "\n")
    text = "Héllo <|eot_id|> 1234\n\n  x"
    ids = tokenizer.encode(text, add_special_tokens=False)
    (folder / "text.json").write_text(json.dumps({"text": text, "ids": ids}, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        shutil.rmtree(TOKENIZER, ignore_errors=True)
        write_tokenizer(TOKENIZER)
        write_profiles(TOKENIZER, PROFILES)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        made = pathlib.Path(temporary)
        write_tokenizer(made / "tokenizer")
        write_profiles(made / "tokenizer", made / "profiles")
        wrong = [file.name for folder, committed in ((made / "tokenizer", TOKENIZER), (made / "profiles", PROFILES))
                 for file in folder.iterdir() if file.read_bytes() != (committed / file.name).read_bytes()]
    print(f"differs: {', '.join(wrong)}" if wrong else "as committed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
