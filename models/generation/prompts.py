"""Prompts into caches: an encoder's memory, or a decoder-only model's first entries. It knows no search and no queue.

Prompts are packed, not padded. Nobody reads the logits of a prompt's inner tokens, so none are computed: a decoder-only
prompt leaves its last token to the first step, which is a step like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.generation.kv_cache import PromptMemory
from models.generation.sequence import Request
from models.layers.attention import PackedAttention
from models.layers.positions import positions_of


@dataclass(frozen=True)
class Prefilled:
    """Each request's memories, and the positions that attention over their prompts computed, padding included."""

    memories: list[tuple[PromptMemory, ...]]
    num_positions: int


def prefill(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Reads the prompts of requests that start together."""
    return _encode(model, requests) if model.is_encoder_decoder else _read(model, requests)


def _encode(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Encoder-decoder: keys and values of the encoder, once a request, per decoder layer."""
    lengths = [len(request.prompt_ids) for request in requests]
    context = PackedAttention(lengths, causal=False)
    encoded_ND = model.encode(_packed(model, requests, lengths), positions_of(lengths).to(model.device), context)
    memories = _memories(model.cross_keys_values(encoded_ND), lengths, None)
    return Prefilled([(memory,) for memory in memories], context.num_padded_tokens)


def _read(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Decoder-only: keys and values of all of a prompt's tokens but the last."""
    lengths = [len(request.prompt_ids) - 1 for request in requests]
    read = [length for length in lengths if length]
    context = _KeepingAttention(read, causal=True, alibi_slopes=model.alibi_slopes)
    if read:
        model.decode(_packed(model, requests, lengths), positions_of(read).to(model.device), context)
    made = iter(_memories(context.seen, read, model.alibi_slopes))
    # The last token is attended to in the first step; it counts, so that all of a prompt's tokens are counted.
    return Prefilled([(next(made),) if length else () for length in lengths], context.num_padded_tokens + len(requests))


def _memories(
    layers: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], alibi_slopes: Tensor | None
) -> list[PromptMemory]:
    """Packed keys and values of several prompts, each prompt's apart.

    Contiguous and each its own: the packed tensors can go, and a step streams through each once.
    """
    split = [
        (k_NHK.transpose(0, 1).split(list(lengths), dim=1), v_NHK.transpose(0, 1).split(list(lengths), dim=1))
        for k_NHK, v_NHK in layers
    ]
    memories = []
    for index, length in enumerate(lengths):
        alibi_H1S = None
        if alibi_slopes is not None:
            distance_S = torch.arange(-length, 0, device=alibi_slopes.device)
            alibi_H1S = (alibi_slopes[:, None, None] * distance_S).to(split[0][0][index].dtype)
        own = [(k_HSK[index].contiguous(), v_HSK[index].contiguous()) for k_HSK, v_HSK in split]
        memories.append(PromptMemory(own, length, alibi_H1S, end=length))
    return memories


def _packed(model: Any, requests: Sequence[Request], lengths: Sequence[int]) -> Tensor:
    token_ids = [ids for one, length in zip(requests, lengths, strict=True) for ids in one.prompt_ids[:length]]
    return torch.tensor(token_ids, dtype=torch.long, device=model.device)


class _KeepingAttention(PackedAttention):
    """Causal attention over whole prompts that keeps the keys and values it sees."""

    def __init__(self, lengths: Sequence[int], causal: bool, alibi_slopes: Tensor | None) -> None:
        super().__init__(lengths, causal, alibi_slopes)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self.seen.append((k_NHK, v_NHK))
        return super().attend(layer, q_NHK, k_NHK, v_NHK)
