#!/usr/bin/env python3
"""Makes kvtier_prompt_profile.json: the token ids around a context, from a checkpoint's own tokenizer.

    make_prompt_profile.py --model DIR                        writes DIR/kvtier_prompt_profile.json
    make_prompt_profile.py --model DIR --kvpress --out FILE   kvpress's prompts and chunk length instead

The texts are those of the KVzip authors' code: a chat template by model family, an instruction line that belongs to the system
prompt, and the prompts that ask for the context again. Every piece is tokenised on its own, without automatic special tokens.
kvpress takes prefix and postfix from the checkpoint's chat template (rendered here with the package jinja2, thinking off; a
template that asks for today's date gets none, as the ids must not change by the day), has no instruction line, and its later
prompt has no space at the end.

The file is described in compressor/prompt_profile.h; its digest is part of every key. Needs the package `tokenizers`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Callable

import checkpoint_tokenizer
from checkpoint_tokenizer import Problem

HINT_TOKENS = 8
CHUNK_TOKENS = 2000
KVPRESS_CHUNK_TOKENS = 2048
INSTRUCTION = "Given the context, answer to the following question or request without explanation.\n\n"
FIRST_PROMPT = "\n\nRepeat the previous context exactly."
LATER_PROMPT = "\n\nRepeat the part of the previous context exactly, starting with "  # the space belongs to it
QUERY_PREFIX = "\n\n"
NO_THINKING = "<think>\n\n</think>\n\n"

# prefix, postfix, and the special tokens in them: a tokenizer that lacks one belongs to another family.
FAMILIES = {
    "llama-3": ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\n",
                "\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen": ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
             "<|im_end|>\n<|im_start|>assistant\n", ("<|im_start|>", "<|im_end|>")),
    "gemma-3": ("<bos><start_of_turn>user\nYou are a helpful assistant.\n\n", "<end_of_turn>\n<start_of_turn>model\n",
                ("<bos>", "<start_of_turn>", "<end_of_turn>")),
}
FAMILIES["qwen-thinking"] = (FAMILIES["qwen"][0], FAMILIES["qwen"][1] + NO_THINKING, FAMILIES["qwen"][2] + ("<think>", "</think>"))
OTHER = "other"  # begin-of-text, and "Answer: "


def family_of(config: dict, folder_name: str) -> str:
    """By model_type. Qwen3 thinks unless its name says instruct: its answer then starts with an empty thought."""
    kind = config.get("model_type")
    if kind == "llama":
        return "llama-3"
    if kind in ("gemma3", "gemma3_text"):
        return "gemma-3"
    if kind == "qwen2" or (kind == "qwen3" and "instruct" in folder_name.lower()):
        return "qwen"
    if kind == "qwen3":
        return "qwen-thinking"
    raise Problem(f"config.json: model_type is {json.dumps(kind)}; say which prompts fit with --family "
                  f"({', '.join([*sorted(FAMILIES), OTHER])})")


def texts_of_family(family: str, begin_of_text: str, instruction: str) -> dict[str, str]:
    """The text of each id list of a profile."""
    prefix, postfix = FAMILIES[family][:2] if family != OTHER else (begin_of_text, "\n\nAnswer: ")
    return {"prefix": prefix + instruction, "postfix": postfix, "first_prompt": FIRST_PROMPT, "later_prompt": LATER_PROMPT,
            "query_prefix": QUERY_PREFIX}


def token_text(tokenizer_config: dict, field: str) -> str:
    """bos_token or eos_token, which is a text, an object with one, or absent."""
    value = tokenizer_config.get(field) or ""
    return value.get("content", "") if isinstance(value, dict) else value


def chat_template(folder: pathlib.Path, tokenizer_config: dict) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template


def texts_of_kvpress(template: str | None, tokenizer_config: dict) -> dict[str, str]:
    """Prefix and postfix as kvpress finds them: a rendered user turn, split around its content."""
    prefix, postfix = "", "\n"
    if template is not None:
        content, mark = "dummy context", "\n" + "#" * len("dummy context")
        rendered = render(template, content + mark, tokenizer_config)
        if rendered.count(mark) != 1 or content not in rendered.split(mark)[0]:
            raise Problem("the chat template does not show a user's text as it is; kvpress would fail too")
        before, postfix = rendered.split(mark)
        prefix = before.split(content)[0]
    return {"prefix": prefix, "postfix": postfix, "first_prompt": FIRST_PROMPT, "later_prompt": LATER_PROMPT.rstrip(" "),
            "query_prefix": QUERY_PREFIX}


def render(template: str, content: str, tokenizer_config: dict) -> str:
    """One user turn and the beginning of an answer, thinking off. The template runs in jinja2's sandbox."""
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise Problem("--kvpress reads the chat template and needs the package `jinja2` for it (pip install jinja2)") from None

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False, **kwargs)
    try:
        return environment.from_string(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False, tools=None,
            documents=None, bos_token=token_text(tokenizer_config, "bos_token"),
            eos_token=token_text(tokenizer_config, "eos_token"))
    except jinja2.exceptions.TemplateError as error:
        raise Problem(f"the chat template cannot be rendered: {error}") from None


def make_profile(name: str, texts: dict[str, str], encode: Callable[[str], list[int]], special: dict[str, int],
                 required: tuple[str, ...], vocabulary: int | None, chunk_tokens: int) -> dict:
    """The profile as the file has it. `encode` gives a text's ids without automatic special tokens; `special` are the tokenizer's
    special tokens. Problem: a required token is not special, or an id lies beyond the model's vocabulary."""
    for token in required:
        if token not in special:
            raise Problem(f"the tokenizer has no special token {token}, so the prompts of '{name}' do not fit this checkpoint; "
                          f"choose another --family, or --kvpress")
    profile: dict = {"version": 1, "name": name}
    for field, text in texts.items():
        profile[field] = encode(text) if text else []
        if vocabulary is not None and any(token >= vocabulary for token in profile[field]):
            raise Problem(f"{field} has id {max(profile[field])}, but config.json says vocab_size {vocabulary}: "
                          f"tokenizer.json is not this checkpoint's")
    profile["hint_tokens"] = HINT_TOKENS
    profile["chunk_tokens"] = chunk_tokens
    used = "".join(texts.values())
    profile["special_tokens"] = {token: number for token, number in sorted(special.items()) if token in used}
    return profile


def to_text(profile: dict) -> str:
    """One field a line."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in profile.items())
    return f"{{\n{lines}\n}}\n"


def vocabulary_of(config: dict) -> int | None:
    """None where config.json leaves it to a default."""
    size = config.get("text_config", config).get("vocab_size")
    return size if isinstance(size, int) else None


def run(arguments: argparse.Namespace) -> str:
    folder = pathlib.Path(arguments.model)
    tokenizer = checkpoint_tokenizer.load(folder)
    config = checkpoint_tokenizer.read_json(folder / "config.json", "the model's configuration")
    settings = folder / "tokenizer_config.json"
    tokenizer_config = checkpoint_tokenizer.read_json(settings, "the tokenizer's configuration") if settings.is_file() else {}
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    if arguments.kvpress:
        name, required, chunk_tokens = "kvpress", (), KVPRESS_CHUNK_TOKENS
        texts = texts_of_kvpress(chat_template(folder, tokenizer_config), tokenizer_config)
    else:
        name = arguments.family or family_of(config, folder.resolve().name)
        begin = token_text(tokenizer_config, "bos_token")
        required = FAMILIES[name][2] if name != OTHER else (begin,) * bool(begin)
        chunk_tokens = CHUNK_TOKENS
        texts = texts_of_family(name, begin, arguments.instruction)
    profile = make_profile(name, texts, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, special, required,
                           vocabulary_of(config), chunk_tokens)
    out = pathlib.Path(arguments.out) if arguments.out else folder / "kvtier_prompt_profile.json"
    try:
        out.write_text(to_text(profile), encoding="utf-8")
    except OSError as error:
        raise Problem(f"{out}: cannot be written: {error.strerror}") from None
    counts = ", ".join(f"{field} {len(profile[field])}" for field in texts)
    return f"{out}: prompts '{name}', chunks of {chunk_tokens} tokens; ids: {counts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint folder with tokenizer.json and config.json")
    parser.add_argument("--family", choices=[*sorted(FAMILIES), OTHER], help="whose prompts; default: by config.json")
    parser.add_argument("--instruction", default=INSTRUCTION, metavar="TEXT", help="line at the end of the prefix; may be empty")
    parser.add_argument("--kvpress", action="store_true", help="the prompts and chunk length of kvpress")
    parser.add_argument("--out", metavar="FILE", help="default: kvtier_prompt_profile.json in the checkpoint folder")
    arguments = parser.parse_args()
    if arguments.kvpress and (arguments.family or arguments.instruction != INSTRUCTION):
        parser.error("--kvpress takes the chat template; --family and --instruction have no place in it")
    try:
        print(run(arguments))
    except Problem as problem:
        print(f"make_prompt_profile: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
