"""Documents and the questions asked about them.

Natural text is what a Debian machine carries: documentation under /usr/share/doc, the licences, and the sources of
Python's standard library. A file belongs to the held-out part if the SHA-256 of its path says so (one in five), so
training and evaluation never share a file. Key-value and needle documents are generated.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import hashlib
import pathlib
import random
import sysconfig

import torch

NATURAL_SOURCES = {
    "prose": ["/usr/share/common-licenses/*", "/usr/share/doc/**/*README*", "/usr/share/doc/**/*.txt*", "/usr/share/doc/**/copyright",
              "/usr/share/doc/**/NEWS*", "/usr/share/doc/**/*.md*"],
    "code": [sysconfig.get_paths()["stdlib"] + "/*.py"],
}
KINDS = ["prose", "code", "lines", "needle"]
SNIPPET = 16

NOUNS = (
    "anchor basin beacon bell boiler bridge buoy cabin cable canvas cellar chart chimney clock compass copper crane deck dial "
    "drum engine ferry filter flag flask forge fuse garden gate gauge glass grain hammer harbor hatch hinge hook island jetty "
    "kettle keel ladder lamp lantern lens lever lock mast meter mill mirror needle oar orchard paddle pier pipe piston plank "
    "porch press pulley pump quarry rail reef relay ribbon roof rope rudder saddle sail salt scale shelf shutter signal siren "
    "slate spindle spring stove switch tank tide timber tower tray tunnel valve vault vessel wagon wharf wheel winch window wire"
).split()
FIELDS = (
    "address age area author batch cache color count delay depth size offset limit level mode name order owner path phase port "
    "priority quota range rate region retry shape speed state status step style target temperature timeout token unit user "
    "version volume weight width zone"
).split()


@dataclasses.dataclass
class Question:
    """`prompt` is asked after the context; `answer` must follow, byte for byte."""

    kind: str  # "suffix", "lookup" or "needle"
    prompt: bytes
    answer: bytes


@dataclasses.dataclass
class Document:
    """A context of printable bytes and the questions of its own kind (key-value lines, needles)."""

    kind: str
    text: bytes
    questions: list[Question]


def is_held_out(path: str) -> bool:
    return hashlib.sha256(path.encode()).digest()[0] < 51


def _read(path: str) -> bytes:
    """The text of a file, plain or gzip; empty if it cannot be read or is not ASCII text."""
    try:
        data = gzip.open(path).read() if path.endswith(".gz") else pathlib.Path(path).read_bytes()
    except (OSError, EOFError):
        return b""
    return data if all(byte in b"\n\t\r" or 32 <= byte < 127 for byte in data[:20000]) else b""


def load_corpus(held_out: bool, shortest: int = 600) -> dict[str, list[bytes]]:
    """The natural texts of one side of the split, by kind; equal texts appear once."""
    corpus: dict[str, list[bytes]] = {}
    for kind, patterns in NATURAL_SOURCES.items():
        paths = sorted({p for pattern in patterns for p in glob.glob(pattern, recursive=True) if pathlib.Path(p).is_file()})
        seen, texts = set(), []
        for path in paths:
            if is_held_out(path) != held_out:
                continue
            text = _read(path)[:200_000]
            digest = hashlib.sha256(text[:2000]).digest()
            if len(text) >= shortest and digest not in seen:
                seen.add(digest)
                texts.append(text)
        corpus[kind] = texts
    return corpus


def byte_frequency(corpus: dict[str, list[bytes]]) -> torch.Tensor:
    """How common each byte is, [256], with a share for every printable byte and a little for all others."""
    counts = torch.zeros(256)
    for text in corpus["prose"] + corpus["code"]:
        counts += torch.bincount(torch.frombuffer(bytearray(text[:20000]), dtype=torch.uint8).long(), minlength=256)
    printable = torch.zeros(256)
    printable[[10] + list(range(32, 127))] = 1.0
    return 0.49 * counts / counts.sum() + 0.49 * printable / printable.sum() + 0.02 / 256


def cut(rng: random.Random, texts: list[bytes], length: int) -> bytes:
    """A random stretch of about `length` bytes; several texts are joined if one is too short."""
    text = rng.choice(texts)
    while len(text) < length:
        text = text + b"\n\n" + rng.choice(texts)
    start = rng.randrange(len(text) - length + 1)
    return text[start : start + length]


def _value(rng: random.Random) -> str:
    """A value as configuration files have them: number, word, path, hexadecimal, dotted number, phrase."""
    make = rng.choice([
        lambda: str(rng.randrange(10 ** rng.randint(1, 7))),
        lambda: rng.choice(NOUNS),
        lambda: "/" + "/".join(rng.choice(NOUNS) for _ in range(rng.randint(2, 3))),
        lambda: "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(4, 12))),
        lambda: ".".join(str(rng.randrange(256)) for _ in range(4)),
        lambda: f"{rng.choice(NOUNS)}-{rng.choice(NOUNS)} {rng.randrange(1000)}",
        lambda: f"{rng.randrange(100)}.{rng.randrange(100)} {rng.choice(['ms', 'm', 'kg', 'percent', 'seconds'])}",
    ])
    return make()


def _key(rng: random.Random) -> str:
    joiner = rng.choice(["_", "-", ".", "_"])
    parts = [rng.choice(NOUNS), rng.choice(FIELDS)]
    if rng.random() < 0.3:
        parts.insert(0, rng.choice(NOUNS))
    if rng.random() < 0.2:
        parts.append(str(rng.randrange(100)))
    return joiner.join(parts)


def lines_document(rng: random.Random, length: int) -> Document:
    """A configuration file: unique keys, one separator style, now and then a comment. Questions ask `key<separator>`."""
    separator = rng.choice(["=", " = ", ": ", "="])
    lines, keys, questions, size = [], set(), [], 0
    while size < length:
        if rng.random() < 0.06:
            line = f"# {rng.choice(NOUNS)} and {rng.choice(NOUNS)}"
        else:
            key, value = _key(rng), _value(rng)
            if key in keys:
                continue
            keys.add(key)
            line = key + separator + value
            questions.append(Question("lookup", (key + separator).encode(), (value + "\n").encode()))
        lines.append(line)
        size += len(line) + 1
    return Document("lines", "".join(line + "\n" for line in lines).encode(), questions)


def needle_document(rng: random.Random, texts: list[bytes], length: int) -> Document:
    """Prose with sentences such as `The secret code of lantern is 48213.` between its lines."""
    count = max(4, length // 300)
    names = rng.sample(NOUNS, min(count, len(NOUNS)))
    needles = [(f"The secret code of {name} is ", f"{rng.randrange(10 ** 4, 10 ** 7)}.") for name in names]
    filler = cut(rng, texts, max(64, length - sum(len(a) + len(b) + 1 for a, b in needles)))
    breaks = [i for i, byte in enumerate(filler) if byte in b" \n"] or [0]
    places = sorted(rng.choices(breaks, k=len(needles)))
    parts, last = [], 0
    for place, (prompt, answer) in zip(places, needles):
        parts += [filler[last : place + 1], (prompt + answer + " ").encode()]
        last = place + 1
    text = b"".join(parts) + filler[last:]
    questions = [Question("needle", prompt.encode(), answer.encode()) for prompt, answer in needles]
    return Document("needle", text, questions)


def make_document(rng: random.Random, corpus: dict[str, list[bytes]], kind: str, length: int) -> Document:
    """A document of `kind` and about `length` bytes."""
    if kind == "lines":
        return lines_document(rng, length)
    if kind == "needle":
        return needle_document(rng, corpus["prose"], length)
    return Document(kind, cut(rng, corpus[kind], length), [])


def suffix_question(rng: random.Random, text: bytes) -> Question | None:
    """A 16-byte snippet that occurs once in `text`, asking for the next 16 bytes; None if no unique one was found."""
    for _ in range(50):
        start = rng.randrange(max(1, len(text) - 2 * SNIPPET + 1))
        snippet = text[start : start + SNIPPET]
        if text.find(snippet) == start and text.find(snippet, start + 1) < 0:
            return Question("suffix", snippet, text[start + SNIPPET : start + 2 * SNIPPET])
    return None


def draw_questions(rng: random.Random, document: Document, count: int) -> list[Question]:
    """Up to `count` questions: half of the document's own kind where it has any, the rest suffix questions."""
    own = rng.sample(document.questions, min(len(document.questions), (count + 1) // 2))
    while len(own) < count:
        question = suffix_question(rng, document.text)
        if question is None:
            break
        own.append(question)
    rng.shuffle(own)
    return own
