"""Prompts into caches: an encoder's memory, or a decoder-only model's first entries. It knows no search and no queue.

Prompts are packed, not padded. Nobody reads the logits of a prompt's inner tokens, so none are computed: a decoder-only
prompt leaves its last token to the first step, which is a step like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.generation.kv_cache import RequestCache
from models.generation.sequence import Request
from models.layers.attention import PackedAttention
from models.layers.positions import positions_of


@dataclass(frozen=True)
class Prefilled:
    """Caches of requests that start, and the positions that attention over their prompts computed, padding included."""

    caches: list[RequestCache]
    num_positions: int


def prefill(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Reads the prompts of requests that start together."""
    return _encode(model, requests) if model.is_encoder_decoder else _read(model, requests)


def _encode(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Encoder-decoder: keys and values of the encoder, once a request, per decoder layer [H, S, K]."""
    lengths = [len(request.prompt_ids) for request in requests]
    context = PackedAttention(lengths, causal=False)
    encoded_ND = model.encode(_packed(model, requests, lengths), positions_of(lengths).to(model.device), context)
    layers = [
        (k_NHK.transpose(0, 1).split(lengths, dim=1), v_NHK.transpose(0, 1).split(lengths, dim=1))
        for k_NHK, v_NHK in model.cross_keys_values(encoded_ND)
    ]
    # Contiguous and each request's own: the packed tensors can go, and each step streams through memory once.
    memories = [[(k[index].contiguous(), v[index].contiguous()) for k, v in layers] for index in range(len(lengths))]
    nothing = encoded_ND.new_empty(2, model.num_layers, model.num_heads, 0, model.head_dim)
    caches = [
        RequestCache(request.num_sequences, memory, nothing) for request, memory in zip(requests, memories, strict=True)
    ]
    return Prefilled(caches, context.num_padded_tokens)


def _read(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Decoder-only: keys and values of all of a prompt's tokens but the last."""
    lengths = [len(request.prompt_ids) - 1 for request in requests]
    read = [length for length in lengths if length]
    context = _KeepingAttention(read, model.alibi_slopes)
    if read:
        model.decode(_packed(model, requests, lengths), positions_of(read).to(model.device), context)
    nothing = torch.empty(
        2, model.num_layers, model.num_heads, 0, model.head_dim, dtype=model.dtype, device=model.device
    )
    prompts = iter(context.entries())
    caches = [
        RequestCache(request.num_sequences, (), next(prompts) if length else nothing, model.alibi_slopes)
        for request, length in zip(requests, lengths, strict=True)
    ]
    # The last token is attended to in the first step; it counts, so that all of a prompt's tokens are counted.
    return Prefilled(caches, context.num_padded_tokens + len(requests))


def _packed(model: Any, requests: Sequence[Request], lengths: Sequence[int]) -> Tensor:
    token_ids = [ids for one, length in zip(requests, lengths, strict=True) for ids in one.prompt_ids[:length]]
    return torch.tensor(token_ids, dtype=torch.long, device=model.device)


class _KeepingAttention(PackedAttention):
    """Causal attention over whole prompts that keeps the keys and values it sees."""

    def __init__(self, lengths: Sequence[int], alibi_slopes: Tensor | None) -> None:
        super().__init__(lengths, causal=True, alibi_slopes=alibi_slopes)
        self._seen: list[Tensor] = []

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self._seen.append(torch.stack((k_NHK, v_NHK)))
        return super().attend(layer, q_NHK, k_NHK, v_NHK)

    def entries(self) -> list[Tensor]:
        """Each prompt's keys and values, [2, layers, H, E, K]."""
        if not self._seen:
            return []
        seen_2LHNK = torch.stack(self._seen, dim=1).transpose(2, 3)
        return list(seen_2LHNK.split(self.lengths, dim=3))
