"""Writes a copy circuit into the weights: the starting point of end-to-end training.

The circuit finds the earlier place in the context whose preceding bytes agree longest with the bytes just read, and
predicts the byte that followed there. It is an ordinary induction circuit, only with a window of WINDOW bytes:

  embedding  a constant direction, the byte's output code (OUT dims) and its matching codes: two on spheres in 3 dims,
             eight on circles, two hash bits. All tokens have the same norm, so RMSNorm is one known factor per layer.
  layer 0    eight query heads attend to exactly 1 .. 8 positions back (the fast rotary pairs, driven by the constant
             direction, peak at one distance) and copy the matching codes there into residual slots 1 .. 8.
  layer 1    three query heads attend 8, 16 and 24 back and copy slots 1 .. 8 into 9 .. WINDOW.
  layer 2    one KV head. Index j of its key at p holds the code of byte p-1-j, index j of its query at i the code of
             byte i-j, both weighted by sqrt(importance(j)), in rotary pairs so slow that distance does not matter. The
             first token is a sink for queries that match nothing. Its value is the output code, sent to the LM head.

Importance falls geometrically with j, so that a longer agreement outweighs a shorter one. Every other weight keeps a small
random initialisation and is there for training to use.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .codes import Tables
from .model import LlamaForCausalLM, ModelConfig, rope_frequencies

NEAR = 8  # slots that layer 0 fills; layer 1 copies them by multiples of this
# The code that each window index compares: 3 dims at the two nearest bytes, then 2, then a hash bit. The letters repeat
# every NEAR indices, so that slots NEAR apart hold the same codes; within NEAR all differ, so that bytes confused by one
# index are told apart by the others.
WINDOW = 26
WINDOW_CODES = ["abcdefgh"[j % NEAR] + ("3" if j < 2 else "2" if j < 24 else "1") for j in range(WINDOW)]
CODE_SIZES = {name: int(name[1]) for name in dict.fromkeys(WINDOW_CODES)}
DECAY = 0.85  # importance of an index relative to the one before it ...
FAR, FAR_START, FAR_DECAY = 16, 0.5, 0.8  # ... and from index FAR on: a snippet must not lose to chance agreement before it
SHARPNESS = 400.0  # attention logit of a full agreement
SINK = 0.25  # share of SHARPNESS that a match must exceed
PEAK = 40.0  # logit that each fast rotary pair adds at the attended distance
OUT = 32
OUT_GAIN = 6.0
LOGIT_GAIN = 2.0
CODE_NORM = 0.5  # of each of the matching codes; the constant direction and the output code have norm 1
IDLE_SCALE = 0.01
BOS = 256
BOS_FLAG = math.sqrt(1.0 + len(CODE_SIZES) * CODE_NORM**2)  # gives the first token the norm of all others

# Residual stream: named column ranges.
CONSTANT, FLAG = 0, 1
OUT_IN = slice(2, 2 + OUT)
OUT_RESULT = slice(2 + OUT, 2 + 2 * OUT)


def slot_codes(slot: int) -> list[str]:
    """The codes that residual slot `slot` must hold: those compared there, and those that layer 1 copies on from it."""
    if slot == 0:
        return list(CODE_SIZES)
    needed = set(WINDOW_CODES[slot - 1 : slot + 1])
    if slot <= NEAR:
        for farther in range(slot + NEAR, WINDOW + 1, NEAR):
            needed |= set(slot_codes(farther))
    return [name for name in CODE_SIZES if name in needed]


def slot_columns() -> dict[tuple[int, str], slice]:
    """(slot, code) -> residual columns. Slot s holds codes of the byte s positions back; slot 0 is the embedding itself."""
    columns, start = {}, OUT_RESULT.stop
    for slot in range(WINDOW + 1):
        for name in slot_codes(slot):
            columns[slot, name] = slice(start, start + CODE_SIZES[name])
            start += CODE_SIZES[name]
    return columns


def squared_norm(last_slot: int) -> float:
    """Squared norm of a residual row once slots 0 .. last_slot are filled."""
    return 2.0 + CODE_NORM**2 * sum(len(slot_codes(slot)) for slot in range(last_slot + 1))


def importance() -> torch.Tensor:
    """Weight of each window index before training, summing to 1: [WINDOW]."""
    far = DECAY ** (FAR - 1) * FAR_START
    weights = torch.tensor([DECAY**j if j < FAR else far * FAR_DECAY ** (j - FAR) for j in range(WINDOW)])
    return weights / weights.sum()


def spread_codes(dims: int, frequency: torch.Tensor, generator: torch.Generator, steps: int = 400) -> torch.Tensor:
    """Unit vectors [256, dims], pushed apart by gradient descent, frequent bytes the most. frequency [256] sums to 1."""
    if dims == 1:  # a hash bit: of each two neighbours in the order of frequency one gets +1, the other -1
        signs = torch.randint(0, 2, (128, 1), generator=generator).float() * 2 - 1
        codes = torch.empty(256, 1)
        codes[frequency.argsort(descending=True)] = torch.cat((signs, -signs), dim=1).view(256, 1)
        return codes
    points = torch.randn(256, dims, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.05)
    weight = frequency.sqrt()[:, None] * frequency.sqrt()[None, :]
    weight = weight * (1 - torch.eye(256))
    for _ in range(steps):
        unit = F.normalize(points, dim=1)
        loss = ((8.0 * unit @ unit.T).exp() * weight).sum().log()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(points.detach(), dim=1)


def _set_shift_head(attention, config: ModelConfig, query_head: int, distance: int, gain: float) -> None:
    """Makes `query_head` attend `distance` positions back; gain is the factor that RMSNorm applies to the constant."""
    dim, group = config.head_dim, config.group_size
    amplitude = math.sqrt(PEAK * math.sqrt(dim)) / gain
    frequencies = rope_frequencies(config)
    query = attention.q_proj.weight.data[query_head * dim : (query_head + 1) * dim]
    kv_head = query_head // group
    key = attention.k_proj.weight.data[kv_head * dim : (kv_head + 1) * dim]
    query.zero_()
    key.zero_()
    for pair in range(fast_pairs(config)):
        phase = -frequencies[pair].item() * distance
        query[pair, CONSTANT] = amplitude * math.cos(phase)
        query[pair + dim // 2, CONSTANT] = amplitude * math.sin(phase)
        key[pair, CONSTANT] = amplitude
        key[pair, FLAG] = -amplitude / BOS_FLAG  # nobody looks for the first token here: its later norms differ


def fast_pairs(config: ModelConfig) -> int:
    """Rotary pairs that turn noticeably within a few thousand positions; the rest are static."""
    return int((rope_frequencies(config) > 1e-4).sum())


def static_dims(config: ModelConfig) -> list[int]:
    """Head dimensions whose rotation over all positions is negligible, slowest first."""
    frequencies = rope_frequencies(config)
    pairs = [p for p in range(config.head_dim // 2) if frequencies[p] * 8192 < 0.2]
    return [d for p in reversed(pairs) for d in (p, p + config.head_dim // 2)]


def _embed(model: LlamaForCausalLM, codes: dict[str, torch.Tensor], out_codes: torch.Tensor) -> None:
    """Fills embedding and LM head."""
    columns = slot_columns()
    used = max(c.stop for c in columns.values())
    embedding = model.model.embed_tokens.weight.data
    embedding[:, :used] = 0.0
    embedding[:, CONSTANT] = 1.0
    embedding[:256, OUT_IN] = out_codes
    for name, code in codes.items():
        embedding[:256, columns[0, name]] = CODE_NORM * code
    embedding[BOS, FLAG] = BOS_FLAG
    head = model.lm_head.weight.data
    head[:, :used] = 0.0
    head[:256, OUT_RESULT] = LOGIT_GAIN * out_codes


def _set_shift_values(attention, config: ModelConfig, kv_head: int, sources: list, gain: float) -> dict:
    """The values of `kv_head` become the codes `sources`, a list of (slot, code). -> source -> first value dimension."""
    columns, dim = slot_columns(), config.head_dim
    value = attention.v_proj.weight.data[kv_head * dim : (kv_head + 1) * dim]
    value.zero_()
    row_of, row = {}, 0
    for source in sources:
        size = CODE_SIZES[source[1]]
        value[row : row + size, columns[source]] = torch.eye(size) / gain
        row_of[source] = row
        row += size
    assert row <= dim
    return row_of


def _route(attention, config: ModelConfig, query_head: int, distance: int, row_of: dict) -> None:
    """Sends the values of `query_head`, which attends `distance` back, to the slots they now belong to."""
    columns, dim = slot_columns(), config.head_dim
    output = attention.o_proj.weight.data[:, query_head * dim : (query_head + 1) * dim]
    output.zero_()
    for (slot, name), row in row_of.items():
        if (slot + distance, name) in columns:
            size = CODE_SIZES[name]
            output[columns[slot + distance, name], row : row + size] = torch.eye(size)


def _copy_recent(model: LlamaForCausalLM, gain: float) -> None:
    """Layer 0: query head h attends h+1 back and fills slot h+1."""
    config, attention = model.config, model.model.layers[0].self_attn
    for head in range(NEAR):
        _set_shift_head(attention, config, head, head + 1, gain)
        row_of = _set_shift_values(attention, config, head // config.group_size, [(0, name) for name in CODE_SIZES], gain)
        _route(attention, config, head, head + 1, row_of)


def _copy_far(model: LlamaForCausalLM, gain: float) -> None:
    """Layer 1: query heads 0, 1, 2 attend 8, 16, 24 back and fill slots NEAR+1 .. WINDOW from slots 1 .. NEAR.

    The values of a KV head hold only the codes that one of its query heads passes on.
    """
    config, attention = model.config, model.model.layers[1].self_attn
    columns, group = slot_columns(), config.group_size
    distances = list(range(NEAR, WINDOW, NEAR))
    for head, distance in enumerate(distances):
        _set_shift_head(attention, config, head, distance, gain)
        group_distances = distances[head // group * group : (head // group + 1) * group]
        sources = [(slot, name) for slot, name in columns if 1 <= slot <= NEAR
                   and any((slot + d, name) in columns for d in group_distances)]
        row_of = _set_shift_values(attention, config, head // group, sources, gain)
        _route(attention, config, head, distance, row_of)


def _match(model: LlamaForCausalLM, weights: torch.Tensor, gain: float, bos_gain: float) -> None:
    """Layer 2: KV head 0, query head 0 compare windows, index j weighted by weights[j]; the value goes to the LM head."""
    config, columns = model.config, slot_columns()
    dim = config.head_dim
    attention = model.model.layers[2].self_attn
    query, key = attention.q_proj.weight.data[:dim], attention.k_proj.weight.data[:dim]
    value, output = attention.v_proj.weight.data[:dim], attention.o_proj.weight.data[:, :dim]
    for weight in (query, key, value, output):
        weight.zero_()
    scale = SHARPNESS * math.sqrt(dim)
    free = static_dims(config)
    for index, share in enumerate(weights.tolist()):
        name = WINDOW_CODES[index]
        amplitude = math.sqrt(scale * share) / (CODE_NORM * gain)
        for offset in range(CODE_SIZES[name]):
            d = free.pop(0)
            query[d, columns[index, name].start + offset] = amplitude
            key[d, columns[index + 1, name].start + offset] = amplitude
    sink_dim = free.pop(0)
    query[sink_dim, CONSTANT] = math.sqrt(scale * SINK) / gain
    key[sink_dim, FLAG] = math.sqrt(scale * SINK) / (BOS_FLAG * bos_gain)
    value[:OUT, OUT_IN] = torch.eye(OUT) / gain
    output[OUT_RESULT, :OUT] = OUT_GAIN * torch.eye(OUT)


def initial_tables(frequency: torch.Tensor, seed: int) -> Tables:
    """Code tables before any training. frequency [256]: how common each byte is in the training text."""
    generator = torch.Generator().manual_seed(seed)
    return Tables({name: spread_codes(size, frequency, generator) for name, size in CODE_SIZES.items()}, importance())


def initialise(config: ModelConfig, tables: Tables, frequency: torch.Tensor, seed: int) -> LlamaForCausalLM:
    """A model with the circuit in place, using `tables` (as they start, or trained by codes.py)."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # what idle heads and MLPs write starts near zero: it would blur the keys' norms
        layer.self_attn.o_proj.weight.data *= IDLE_SCALE
        layer.mlp.down_proj.weight.data *= IDLE_SCALE
    _embed(model, tables.codes, spread_codes(OUT, frequency, torch.Generator().manual_seed(seed + 1)))
    gains = [math.sqrt(config.hidden_size / squared_norm(last)) for last in (0, NEAR, WINDOW)]
    _copy_recent(model, gains[0])
    _copy_far(model, gains[1])
    _match(model, tables.importance, gains[2], gains[0])
    return model
