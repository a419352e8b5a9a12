"""The prompt profile of the fixture model: token-id lists, as kvtier_prompt_profile.json holds them.

The model completes text, so a question is simply the beginning of a line and the answer is its continuation: the postfix
is empty. Both openers end in the same words, which lets the repetition of the first chunk start at the right place.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

BOS, EOS = 256, 257
SPECIAL_TOKENS = {"<|begin_of_text|>": BOS, "<|end_of_text|>": EOS}
OPENER = "exactly.\n\nContext:\n"


@dataclasses.dataclass(frozen=True)
class PromptProfile:
    """Token ids of every fixed piece of a prompt."""

    name: str
    prefix: list[int]
    postfix: list[int]
    first_prompt: list[int]
    later_prompt: list[int]
    query_prefix: list[int]
    hint_tokens: int = 8
    chunk_tokens: int = 500

    def repeat_inputs(self, context: list[int]) -> list[tuple[int, int, list[int]]]:
        """The chunks [begin, end) of `context`, each with its whole repeat input."""
        chunks = []
        for begin in range(0, len(context), self.chunk_tokens):
            end = min(begin + self.chunk_tokens, len(context))
            if begin == 0:
                head = self.first_prompt + self.postfix
            else:
                head = self.later_prompt + context[max(0, begin - self.hint_tokens) : begin] + self.postfix
            chunks.append((begin, end, head + context[begin:end]))
        return chunks

    def question_ids(self, question: bytes) -> list[int]:
        """Everything that is fed after the context and before the answer."""
        return self.query_prefix + list(question) + self.postfix

    def to_json(self) -> dict:
        return {
            "version": 1,
            "name": self.name,
            "prefix": self.prefix,
            "postfix": self.postfix,
            "first_prompt": self.first_prompt,
            "later_prompt": self.later_prompt,
            "query_prefix": self.query_prefix,
            "hint_tokens": self.hint_tokens,
            "chunk_tokens": self.chunk_tokens,
            "byte_vocabulary": {"first_id": 0},
            "special_tokens": SPECIAL_TOKENS,
        }

    def save(self, path: pathlib.Path) -> None:
        """One line per field: the id lists stay readable in a diff."""
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_json().items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def fixture_profile() -> PromptProfile:
    text = lambda s: list(s.encode("ascii"))
    return PromptProfile(
        name="kvtier-fixture",
        prefix=[BOS] + text("Given the context, continue each text " + OPENER),
        postfix=[],
        first_prompt=text("\n\nRepeat the previous context " + OPENER),
        later_prompt=text("\n\nRepeat the part of the previous context exactly, starting with "),
        query_prefix=text("\n\n"),
    )
