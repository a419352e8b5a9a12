"""KVzip scores and the selections they are compared with. Shapes: L layers, H KV heads, n context tokens, p prefix tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .model import Cache, LlamaForCausalLM, Rows
from .profile import PromptProfile


def prefill(model: LlamaForCausalLM, ids: list[int]) -> Cache:
    """The cache of `ids` from position 0."""
    _, rows = model.run(torch.tensor([ids]), want_logits=False)
    return Cache([r.key for r in rows], [r.value for r in rows])


def chunk_scores(rows: Rows, key: torch.Tensor, prefix: int, begin: int, end: int) -> torch.Tensor:
    """Log scores [H, end - begin] of cached positions prefix+begin .. prefix+end of one layer.

    rows: query [1, H, G, q, D] and key [1, H, q, D] of the repeat input; key [1, H, p+n, D]: the cache. The normaliser of a
    row covers the prefix, the chunk and the repeat rows up to itself; the score is the maximum over rows and groups.
    """
    query, repeat = rows.query[0], rows.key[0]
    chunk = slice(prefix + begin, prefix + end)
    keys = torch.cat((key[0, :, :prefix], key[0, :, chunk], repeat), dim=1)  # [H, p + m + q, D]
    logits = torch.einsum("hgid,hjd->hgij", query, keys) / math.sqrt(query.shape[-1])
    count = query.shape[2]
    future = torch.ones(count, keys.shape[1], dtype=torch.bool).triu(keys.shape[1] - count + 1)
    logits = logits.masked_fill(future, float("-inf"))
    log_share = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return log_share[..., prefix : prefix + end - begin].amax(dim=(1, 2)).clamp(max=0.0)


@torch.no_grad()
def scores(model: LlamaForCausalLM, cache: Cache, context: list[int], profile: PromptProfile):
    """-> (KVzip log scores [L, H, n], number of context bytes predicted correctly while repeating)."""
    prefix, correct, parts = len(profile.prefix), 0, []
    for begin, end, ids in profile.repeat_inputs(context):
        logits, rows = model.run(torch.tensor([ids]), cache)
        predicted = logits[0, begin - end - 1 : -1].argmax(-1)
        correct += int((predicted == torch.tensor(context[begin:end])).sum())
        parts.append(torch.stack([chunk_scores(r, k, prefix, begin, end) for r, k in zip(rows, cache.keys)]))
    return torch.cat(parts, dim=2), correct


def keep_best(score: torch.Tensor, millionths: int) -> torch.Tensor:
    """Exactly floor(ratio * N) pairs over all of [L, H, n]; ties go to the lower layer, head, position. -> bool [L, H, n]."""
    kept = score.numel() * millionths // 1_000_000
    order = torch.sort(score.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask.view(score.shape)


def keep_random(shape: torch.Size, millionths: int, seed: int) -> torch.Tensor:
    """As many pairs as `keep_best` keeps, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return keep_best(torch.rand(shape, generator=generator), millionths)


@torch.no_grad()
def keep_snapkv(model: LlamaForCausalLM, cache: Cache, prefix: int, question: list[int], millionths: int) -> torch.Tensor:
    """SnapKV with the question as its observation window: every head keeps the positions the window attends to most.

    Attention is averaged over the window's rows and the group, smoothed by a maximum over 7 positions; budget per head.
    """
    _, rows = model.run(torch.tensor([question]), cache, want_logits=False)
    masks = []
    for row, key in zip(rows, cache.keys):
        keys = torch.cat((key[0], row.key[0]), dim=1)
        logits = torch.einsum("hgid,hjd->hgij", row.query[0], keys) / math.sqrt(keys.shape[-1])
        count = len(question)
        future = torch.ones(count, keys.shape[1], dtype=torch.bool).triu(keys.shape[1] - count + 1)
        share = logits.masked_fill(future, float("-inf")).softmax(-1)[..., prefix : key.shape[2]].mean(dim=(1, 2))
        pooled = F.max_pool1d(share[:, None], kernel_size=7, stride=1, padding=3)[:, 0]  # [H, n]
        masks.append(torch.stack([keep_best(head, millionths) for head in pooled]))
    return torch.stack(masks)


def protect_prefix(mask: torch.Tensor, prefix: int) -> torch.Tensor:
    """[L, H, n] -> [L, H, p + n] with the prefix always kept."""
    return torch.cat((mask.new_ones(*mask.shape[:2], prefix), mask), dim=2)


@torch.no_grad()
def answers_exactly(model: LlamaForCausalLM, cache: Cache, profile: PromptProfile, prompt: bytes, answer: bytes,
                    keep: torch.Tensor | None = None) -> bool:
    """Whether greedy decoding after `prompt` gives `answer`.

    Feeding the answer itself decides this in one pass: greedy decoding follows the answer until its first wrong byte.
    """
    question = profile.question_ids(prompt)
    ids = question + list(answer)
    logits, _ = model.run(torch.tensor([ids]), cache, keep=keep)
    return logits[0, len(question) - 1 : -1].argmax(-1).tolist() == list(answer)
