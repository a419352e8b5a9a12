"""A Llama-architecture model in plain PyTorch, with an explicit key/value cache.

The arithmetic is that of Hugging Face's `LlamaForCausalLM` (RMSNorm, half-split RoPE, grouped-query attention, SwiGLU,
no biases); parameter names are the same too, so `save_pretrained` writes a folder that transformers loads. The cache is
explicit because KVzip needs the rotated queries and keys of a pass, and because evicted pairs are masked per (layer, head).

Shapes: B batch, T new rows, S cached rows, C hidden size, H KV heads, G query heads per KV head, D head dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import safetensors_file

QUERY_BLOCK = 512  # rows of attention computed at once; bounds the size of the logits


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The fields of config.json that shape the computation."""

    vocab_size: int = 260
    hidden_size: int = 256
    intermediate_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    max_position_embeddings: int = 16384
    rope_theta: float = 1e30
    rms_norm_eps: float = 1e-6

    @property
    def group_size(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def to_json(self) -> dict:
        """config.json as transformers expects it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.rms_norm_eps,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "torch_dtype": "bfloat16",
        }

    @staticmethod
    def from_json(fields: dict) -> "ModelConfig":
        names = [f.name for f in dataclasses.fields(ModelConfig)]
        return ModelConfig(**{name: fields[name] for name in names})


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rope_frequencies(config: ModelConfig) -> torch.Tensor:
    """Angular frequency of each rotary pair: [D/2]. Pair i couples dimensions i and i + D/2."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    return 1.0 / (config.rope_theta**exponent)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies RoPE. x [B, heads, T, D]; cos, sin [T, D]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


@dataclasses.dataclass
class Rows:
    """What one layer computed for the new rows, all post-RoPE: query [B, H, G, T, D], key and value [B, H, T, D]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


class Attention(nn.Module):
    """Grouped-query causal attention; new rows see the whole cache plus themselves."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def project(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Rows:
        """x [B, T, C] to rotated rows."""
        c, (batch, rows) = self.config, x.shape[:2]
        heads = lambda y: y.view(batch, rows, -1, c.head_dim).transpose(1, 2)
        query = rotate(heads(self.q_proj(x)), cos, sin)
        query = query.reshape(batch, c.num_key_value_heads, c.group_size, rows, c.head_dim)
        return Rows(query, rotate(heads(self.k_proj(x)), cos, sin), heads(self.v_proj(x)))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """query [B, H, G, T, D] over key, value [B, H, S+T, D], bottom-right causal; keep [H, S+T] bool or None. -> [B, T, C].

        Queries go in blocks and each block only touches the keys it may see.
        """
        batch, heads, group, rows, dim = query.shape
        total = key.shape[2]
        outputs = []
        for start in range(0, rows, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, rows)
            seen = total - rows + stop
            count = stop - start
            block = (query[:, :, :, start:stop] / math.sqrt(dim)).reshape(batch, heads, group * count, dim)
            logits = torch.matmul(block, key[:, :, :seen].transpose(2, 3)).view(batch, heads, group, count, seen)
            future = torch.ones(count, count, dtype=torch.bool).triu(1)  # earlier columns are visible to the whole block
            logits[..., seen - count :].masked_fill_(future, float("-inf"))
            if keep is not None:
                logits.masked_fill_(~keep[None, :, None, None, :seen], float("-inf"))
            weights = torch.softmax(logits, dim=-1).view(batch, heads, group * count, seen)
            outputs.append(torch.matmul(weights, value[:, :, :seen]).view(batch, heads, group, count, dim))
        mixed = torch.cat(outputs, dim=3)  # [B, H, G, T, D]
        return self.o_proj(mixed.permute(0, 3, 1, 2, 4).reshape(batch, rows, heads * group * dim))


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin, past_key=None, past_value=None, keep=None):
        """x [B, T, C] -> (x, key [B, H, T, D], value, query); past_* [B, H, S, D] or None."""
        rows = self.self_attn.project(self.input_layernorm(x), cos, sin)
        key = rows.key if past_key is None else torch.cat((past_key, rows.key), dim=2)
        value = rows.value if past_value is None else torch.cat((past_value, rows.value), dim=2)
        x = x + self.self_attn.attend(rows.query, key, value, keep)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, rows.key, rows.value, rows.query


@dataclasses.dataclass
class Cache:
    """Rotated keys and values of a prefix, per layer [B, H, S, D]; never modified in place."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def extended(self, rows: list[Rows]) -> "Cache":
        """A new cache with `rows` appended."""
        keys = [torch.cat((k, r.key), dim=2) for k, r in zip(self.keys, rows)]
        values = [torch.cat((v, r.value), dim=2) for v, r in zip(self.values, rows)]
        return Cache(keys, values)


class Decoder(nn.Module):
    """Everything of LlamaForCausalLM under the name `model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class LlamaForCausalLM(nn.Module):
    """The whole model. `forward` is for training, `run` for inference over a cache."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def angles(self, start: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [rows, D] of positions start .. start+rows-1."""
        angle = torch.arange(start, start + rows).float()[:, None] * rope_frequencies(self.config)[None, :]
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    def forward(self, ids: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        """ids [B, T] -> final hidden rows [B, T, C] before the LM head; `recompute` trades time for memory."""
        cos, sin = self.angles(0, ids.shape[1])
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            if recompute:
                x = checkpoint(lambda y, layer=layer: layer(y, cos, sin)[0], x)
            else:
                x = layer(x, cos, sin)[0]
        return self.model.norm(x)

    @torch.no_grad()
    def run(self, ids: torch.Tensor, cache: Cache | None = None, start: int | None = None,
            keep: torch.Tensor | None = None, want_logits: bool = True):
        """ids [B, T] appended after `cache` -> (logits [B, T, V] or None, [Rows] per layer).

        start: position of the first row (default: the cache's length). keep: bool [L, H, S], False where a cached pair is
        evicted; the new rows are always visible. The cache is not changed.
        """
        rows_new = ids.shape[1]
        start = (cache.length if cache else 0) if start is None else start
        cos, sin = self.angles(start, rows_new)
        x = self.model.embed_tokens(ids)
        rows = []
        for index, layer in enumerate(self.model.layers):
            past = (cache.keys[index], cache.values[index]) if cache else (None, None)
            mask = None
            if keep is not None:
                mask = torch.cat((keep[index], keep.new_ones(keep.shape[1], rows_new)), dim=1)
            x, key, value, query = layer(x, cos, sin, past[0], past[1], mask)
            rows.append(Rows(query, key, value))
        return (self.lm_head(self.model.norm(x)) if want_logits else None), rows


def save_pretrained(model: LlamaForCausalLM, folder: pathlib.Path) -> None:
    """Writes config.json and model.safetensors (bf16, round to nearest even)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    safetensors_file.save(folder / "model.safetensors", tensors)


def load_pretrained(folder: pathlib.Path) -> LlamaForCausalLM:
    """Reads a folder written by `save_pretrained`; the weights are upcast to fp32."""
    config = ModelConfig.from_json(json.loads((folder / "config.json").read_text()))
    model = LlamaForCausalLM(config)
    tensors = safetensors_file.load(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()
