#!/usr/bin/env python3
"""The definition of KVzip's scores and of the selection, written out in NumPy and double precision: slow, and meant to be read.

Nothing here is shared with kvtier, and nothing is made fast: every logit is computed, every softmax normalised as the formula
says. Arrays of one layer, keys and queries after norm and RoPE:

    keys, values    [H, n_s + n_c, D]   the cache: n_s protected rows, then the context
    queries         [H, G, q, D]        of the q rows of one repeat input; query head h * G + g
    repeat_keys     [H, q, D]           of the same rows
    attention_input [q, width]          h_i, what the attention module is given (after the input norm)
    output          [H, G, width, D]    the part of the output projection that belongs to each query head

    kvzip_numpy.py    checks itself against the closed-form example and its printed numbers (exit 77: no NumPy here)
"""

from __future__ import annotations

import sys
try:
    import numpy as np
except ImportError:
    if __name__ == "__main__":
        print("skipped: this Python has no NumPy")
        sys.exit(77)
    raise

VARIANTS = ("kvzip", "kvzip+", "full-softmax", "logit")


# --- repeat inputs ------------------------------------------------------------------------------------------------------------

def chunks(context_length: int, chunk_length: int) -> list[tuple[int, int]]:
    """[begin, end) of each chunk in context positions."""
    return [(begin, min(begin + chunk_length, context_length)) for begin in range(0, context_length, chunk_length)]


def repeat_inputs(context: list[int], profile: dict) -> list[list[int]]:
    """The ids of each chunk's repeat input. `profile`: the fields of kvtier_prompt_profile.json."""
    inputs = []
    for begin, end in chunks(len(context), profile["chunk_tokens"]):
        if begin == 0:
            prompt = list(profile["first_prompt"])
        else:
            hint = min(profile["hint_tokens"], profile["chunk_tokens"])
            prompt = list(profile["later_prompt"]) + list(context[begin - hint:begin])
        inputs.append(prompt + list(profile["postfix"]) + list(context[begin:end]))
    return inputs


# --- scores -------------------------------------------------------------------------------------------------------------------

def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf entries are absent."""
    top = logits.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]


def row_logits(query_rows: np.ndarray, cache_keys: np.ndarray, repeat_keys: np.ndarray, scale: float) -> np.ndarray:
    """Logits of q rows over [cache keys, repeat keys]; row i sees repeat keys 0..i, the others are -inf."""
    q = query_rows.astype(np.float64)
    of_repeat = scale * q @ repeat_keys.astype(np.float64).T
    of_repeat[np.triu_indices(len(q), k=1)] = -np.inf
    return np.concatenate([scale * q @ cache_keys.astype(np.float64).T, of_repeat], axis=1)


def score_chunk(variant: str, queries: np.ndarray, keys: np.ndarray, repeat_keys: np.ndarray, prefix: int, begin: int, end: int,
                scale: float, values: np.ndarray | None = None, attention_input: np.ndarray | None = None,
                output: np.ndarray | None = None, sinks: int | None = None) -> np.ndarray:
    """Log scores [H, end - begin] of context positions [begin, end). For "logit" the largest logit. `sinks`: the normaliser
    counts that many first rows of the cache instead of the whole prefix (kvpress: the lesser of 4 and prefix + begin)."""
    heads, groups, _, _ = queries.shape
    result = np.empty((heads, end - begin))
    a, b = prefix + begin, prefix + end
    protected = prefix if sinks is None else sinks
    for h in range(heads):
        best = np.full(end - begin, -np.inf)
        for g in range(groups):
            value = scale * queries[h, g].astype(np.float64) @ keys[h, a:b].astype(np.float64).T
            if variant != "logit":
                seen = keys[h] if variant == "full-softmax" else np.concatenate([keys[h, :protected], keys[h, a:b]])
                value = value - log_sum_exp(row_logits(queries[h, g], seen, repeat_keys[h], scale))[:, None]
            if variant == "kvzip+":
                value = value - np.log(np.linalg.norm(attention_input.astype(np.float64), axis=1))[:, None]
                projected = values[h, a:b].astype(np.float64) @ output[h, g].astype(np.float64).T
                value = value + np.log(np.linalg.norm(projected, axis=1))[None, :]
            best = np.maximum(best, value.max(axis=0))
        result[h] = best
    return np.minimum(result, 0.0) if variant in ("kvzip", "full-softmax") else result


# --- selection ----------------------------------------------------------------------------------------------------------------
# A ratio is given in millionths and multiplied as an integer.

MILLION = 1_000_000


def rank(scores: np.ndarray, first_token_first: bool = False) -> np.ndarray:
    """Flat indices [layer, head, position] by (score descending, layer, head, position ascending). `first_token_first`, where
    there is no system prompt: position 0 of every head comes before all others."""
    pairs = np.ndindex(scores.shape)
    order = sorted(pairs, key=lambda pair: (not (first_token_first and pair[2] == 0), -scores[pair], pair))
    return np.array([np.ravel_multi_index(pair, scores.shape) for pair in order])


def keep_exact(scores: np.ndarray, millionths: int, first_token_first: bool = False) -> np.ndarray:
    """The first floor(r N) of the ranking, as a mask of the shape of `scores`."""
    kept = np.zeros(scores.size, dtype=np.uint8)
    kept[rank(scores, first_token_first)[:scores.size * millionths // MILLION]] = 1
    return kept.reshape(scores.shape)


def keep_uniform(scores: np.ndarray, millionths: int, first_token_first: bool = False) -> np.ndarray:
    """Of every (layer, head) the same number."""
    kept = np.zeros(scores.shape, dtype=np.uint8)
    for layer, head in np.ndindex(scores.shape[:2]):
        one = scores[layer:layer + 1, head:head + 1]
        kept[layer, head] = keep_exact(one, millionths, first_token_first)[0, 0]
    return kept


def keep_heads(head_scores: np.ndarray, millionths: int) -> np.ndarray:
    """[layers, heads]: the floor(r L H) best heads, whole."""
    return keep_exact(head_scores[:, :, None], millionths)[:, :, 0]


def keep_strict(scores: np.ndarray, ratio: float) -> np.ndarray:
    """The original code's rule: everything strictly above the value at rank max(trunc(r N) - 1, 0)."""
    threshold = np.sort(scores.ravel())[::-1][max(int(ratio * scores.size) - 1, 0)]
    return (scores > threshold).astype(np.uint8)


def keep_kvpress(scores: np.ndarray, removed: float, sinks: int = 4) -> np.ndarray:
    """kvpress 0.5.5: scores (not logarithms) over prefix and context; the first `sinks` positions always stay; the
    trunc(N * removed) lowest go, N counting the prefix too. Ties, which kvpress breaks as it happens: the later index goes."""
    scores = scores.copy()
    scores[:, :, :sinks] = np.inf
    kept = np.ones(scores.size, dtype=np.uint8)
    gone = int(scores.size * removed)
    kept[rank(scores)[scores.size - gone:]] = 0
    return kept.reshape(scores.shape)


# --- the closed-form example of the published rules -----------------------------------------------------------------------------

def example() -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """queries and repeat keys of both chunks, and the cache keys. H = 2, G = 2, D = 4, n_s = 2, n_c = 5, m = 3, scale 1/2."""
    d = np.arange(4)
    keys = np.array([[np.cos(0.5 * h + 0.37 * j + 0.8 * d) for j in range(7)] for h in range(2)])
    queries = [np.array([[[2 * np.sin(0.7 * (1 + h) + 0.3 * g + 0.11 * i + 0.9 * d + 0.4 * t) for i in range(5)]
                          for g in range(2)] for h in range(2)]) for t in range(2)]
    repeat = [np.array([[np.cos(0.5 * h + 0.37 * (7 + i) + 0.8 * d + 0.2 * t) for i in range(5)] for h in range(2)])
              for t in range(2)]
    return queries, repeat, keys


def example_scores(variant: str) -> np.ndarray:
    """[1, 2, 5]"""
    queries, repeat, keys = example()
    parts = [score_chunk(variant, queries[t], keys, repeat[t], 2, begin, end, 0.5) for t, (begin, end) in enumerate(chunks(5, 3))]
    return np.concatenate(parts, axis=1)[None]


def flat(kept: np.ndarray) -> set[int]:
    return set(np.flatnonzero(kept).tolist())


def self_test() -> None:
    """Every number that is printed for the example."""
    printed = {
        "kvzip": [[-1.607043, -2.195023, -2.928533, -2.636807, -3.429202], [-1.550736, -2.086703, -2.791430, -2.280829, -3.017460]],
        "full-softmax": np.log([[0.193429, 0.107440, 0.051595, 0.038741, 0.017540],
                                [0.203636, 0.119148, 0.058888, 0.051876, 0.024834]]),
        "logit": [[1.663230, 1.075250, 0.341739, 0.284687, -0.507708], [1.782848, 1.246880, 0.542153, 0.507109, -0.229523]]}
    for variant, numbers in printed.items():
        error = np.abs(example_scores(variant)[0] - np.array(numbers)).max()
        assert error < (3e-5 if variant == "full-softmax" else 1e-6), (variant, error)
    queries, repeat, keys = example()
    normalisers = {(0, 0, 0): [2.290273, 2.485376, 2.665816, 2.832631, 2.987431],
                   (1, 1, 1): [2.856365, 2.858342, 2.844348, 2.818889, 2.787938]}
    for (t, h, g), numbers in normalisers.items():
        seen = np.concatenate([keys[h, :2], keys[h, 2 + 3 * t:min(5 + 3 * t, 7)]])
        assert np.abs(log_sum_exp(row_logits(queries[t][h, g], seen, repeat[t][h], 0.5)) - numbers).max() < 1e-6
    log_scores = example_scores("kvzip")
    assert rank(log_scores).tolist() == [5, 0, 6, 1, 8, 3, 7, 2, 9, 4]
    exact = {100_000: {5}, 200_000: {0, 5}, 300_000: {0, 5, 6}, 400_000: {0, 1, 5, 6}, 600_000: {0, 1, 3, 5, 6, 8}}
    for millionths, pairs in exact.items():
        assert flat(keep_exact(log_scores, millionths)) == pairs, millionths
    strict = {0.1: set(), 0.2: {5}, 0.3: {0, 5}, 0.5: {0, 1, 5, 6}, 0.8: {0, 1, 3, 5, 6, 7, 8}, 0.9: {0, 1, 2, 3, 5, 6, 7, 8}}
    for ratio, pairs in strict.items():
        assert flat(keep_strict(log_scores, ratio)) == pairs, ratio
    for millionths, positions in {300_000: 1, 500_000: 2, 900_000: 4}.items():
        assert flat(keep_uniform(log_scores, millionths)) == {h * 5 + j for h in range(2) for j in range(positions)}
    heads = log_scores.max(axis=2)
    assert np.abs(np.exp(heads) - [[0.200480, 0.212092]]).max() < 1e-6
    assert flat(keep_heads(heads, 500_000)) == {1} and flat(keep_heads(heads, 499_999)) == set()
    # Ties: the lowest index stays; without a system prompt the first token of each head comes first.
    level = np.zeros((1, 2, 3))
    assert flat(keep_exact(level, 500_000)) == {0, 1, 2} and flat(keep_exact(level, 500_000, True)) == {0, 1, 3}
    assert flat(keep_kvpress(np.arange(10.0).reshape(1, 1, 10), 0.35)) == {0, 1, 2, 3, 7, 8, 9}
    # Repeat inputs: a last chunk of one token, its hint, and a context of one chunk.
    profile = {"first_prompt": [1], "later_prompt": [2, 3], "postfix": [4], "hint_tokens": 2, "chunk_tokens": 3}
    assert repeat_inputs([10, 11, 12, 13], profile) == [[1, 4, 10, 11, 12], [2, 3, 11, 12, 4, 13]]
    assert repeat_inputs([10], profile) == [[1, 4, 10]] and repeat_inputs([], profile) == []
    # kvzip+ is kvzip with the norms put in by hand where there is one row, one group and one head.
    random = np.random.default_rng(1)
    q, k, r = random.normal(size=(1, 1, 1, 4)), random.normal(size=(1, 6, 4)), random.normal(size=(1, 1, 4))
    v, h, w = random.normal(size=(1, 6, 4)), random.normal(size=(1, 7)), random.normal(size=(1, 1, 7, 4))
    plain = score_chunk("kvzip", q, k, r, 2, 0, 4, 0.5)
    plus = score_chunk("kvzip+", q, k, r, 2, 0, 4, 0.5, v, h, w)
    by_hand = [plain[0, j] + np.log(np.sqrt(((w[0, 0] @ v[0, 2 + j]) ** 2).sum()) / np.sqrt((h ** 2).sum())) for j in range(4)]
    assert np.abs(plus[0] - by_hand).max() < 1e-12
    print("the definition agrees with its printed example")


if __name__ == "__main__":
    self_test()
