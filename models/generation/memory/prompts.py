"""Prompts into memories: an encoder's output, or what a decoder-only model read. It knows no search and no queue.

Prompts are packed, not padded. Nobody reads the logits of a prompt's inner tokens, so none are computed: a decoder-only
prompt leaves its last token to the first step, which is a step like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.entry_pool import PromptMemory
from batchloom.models.generation.memory.prefixes import Prefix, Prefixes
from batchloom.models.generation.requests import Request
from batchloom.models.layers.attention import PackedAttention
from batchloom.models.layers.positions import positions_of
from batchloom.models.layers.product_attention import ProductAttention

MOST_SCORES = 1024  # tokens of a text whose scores are held at once: 16 heads of them take 32 MB


@dataclass(frozen=True)
class Prompts:
    """What a decoder sees of several requests' prompts: packed keys and values [N, H, K] of each decoder layer."""

    requests: Sequence[Request]
    lengths: Sequence[int]  # of each request; 0 where all it has is the prefix, or nothing
    layers: Sequence[tuple[Tensor, Tensor]]
    prefix: Prefix | None = None  # what all of them stand after


@dataclass(frozen=True)
class Prefilled:
    """The prompts of requests that start, and the positions that attention over them computed, padding included."""

    prompts: Sequence[Prompts]
    num_positions: int


def encode(model: Any, requests: Sequence[Request]) -> Prefilled:
    """Encoder-decoder: keys and values of the encoder, once a request, per decoder layer."""
    texts = [request.prompt_ids for request in requests]
    lengths = [len(text) for text in texts]
    context = _DocumentAttention(lengths) if _is_plain(model) else PackedAttention(lengths, causal=False)
    encoded_ND = model.encode(_packed(texts, model.device), positions_of(lengths).to(model.device), context)
    prompts = Prompts(requests, lengths, model.cross_keys_values(encoded_ND))
    return Prefilled([prompts], context.num_padded_tokens)


def read(model: Any, requests: Sequence[Request], prefixes: Prefixes) -> Prefilled:
    """Decoder-only: keys and values of all of a prompt's tokens but the last; a beginning that others share, once."""
    num_positions = 0
    with prefixes.reading:
        for token_ids in prefixes.missing([request.prompt_ids for request in requests]):
            layers, num = _read(model, [token_ids], None)
            prefixes.hold(Prefix(token_ids, memories(layers, [len(token_ids)], 0, model.alibi_slopes)[0]))
            num_positions += num
    by_prefix: dict[Prefix | None, list[Request]] = {}
    for request in requests:
        by_prefix.setdefault(prefixes.find(request.prompt_ids), []).append(request)
    prompts = []
    for prefix, members in by_prefix.items():
        start = 0 if prefix is None else len(prefix.token_ids)
        texts = [request.prompt_ids[start:-1] for request in members]
        layers, num = _read(model, [text for text in texts if text], prefix)
        prompts.append(Prompts(members, [len(text) for text in texts], layers, prefix))
        num_positions += num
    # A last token is attended to in the first step; it counts, so that all of a prompt's tokens are counted.
    return Prefilled(prompts, num_positions + len(requests))


def _read(
    model: Any, texts: Sequence[Sequence[int]], prefix: Prefix | None
) -> tuple[Sequence[tuple[Tensor, Tensor]], int]:
    """Packed keys and values of texts that all stand after `prefix`, and the positions computed."""
    if not texts:
        return [], 0
    lengths = [len(text) for text in texts]
    start = 0 if prefix is None else len(prefix.token_ids)
    context: _Reading | _ReadingEach
    if prefix is None and (not _is_plain(model) or max(lengths) > MOST_SCORES):
        context = _Reading(lengths, model.alibi_slopes)
    else:
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        context = _ReadingEach(lengths, like, model.alibi_slopes, None if prefix is None else prefix.memory)
    position_N = positions_of(lengths).to(model.device) + start
    model.decode(_packed(texts, model.device), position_N, context)
    return context.seen, context.num_padded_tokens


def memories(
    layers: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], start: int, alibi_slopes: Tensor | None
) -> list[PromptMemory]:
    """Packed keys and values of several texts that stand at position `start`, each text's apart.

    Contiguous and each its own: the packed tensors can go, and a step streams through each once.
    """
    split = [
        (k_NHK.transpose(0, 1).split(list(lengths), dim=1), v_NHK.transpose(0, 1).split(list(lengths), dim=1))
        for k_NHK, v_NHK in layers
    ]
    made = []
    for index, length in enumerate(lengths):
        alibi_H1S = None
        if alibi_slopes is not None:
            distance_S = torch.arange(-length, 0, device=alibi_slopes.device)
            alibi_H1S = (alibi_slopes[:, None, None] * distance_S).to(split[0][0][index].dtype)
        own = [(k_HSK[index].contiguous(), v_HSK[index].contiguous()) for k_HSK, v_HSK in split]
        made.append(PromptMemory(own, length, alibi_H1S, start + length))
    return made


def _is_plain(model: Any) -> bool:
    """Whether plain products beat torch's fused attention: on a CPU in bfloat16, 1.7 to 2 times from 100 tokens on."""
    return bool(model.device.type == "cpu" and model.dtype == torch.bfloat16)


def _packed(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([token for text in texts for token in text], dtype=torch.long, device=device)


class _DocumentAttention:
    """Attention over whole documents, products of each one's own and no padding."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.num_padded_tokens = sum(lengths)
        self._attention = ProductAttention(lengths, lengths, causal=False)

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:  # noqa: ARG002
        return self._attention(q_NHK, k_NHK, v_NHK, scale=q_NHK.shape[-1] ** -0.5)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("an encoder does not cross-attend")


class _Reading(PackedAttention):
    """Causal attention over whole texts that keeps the keys and values it sees."""

    def __init__(self, lengths: Sequence[int], alibi_slopes: Tensor | None) -> None:
        super().__init__(lengths, causal=True, alibi_slopes=alibi_slopes)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self.seen.append((k_NHK, v_NHK))
        return super().attend(layer, q_NHK, k_NHK, v_NHK)


class _ReadingEach:
    """The same with products of each text's own, and after a memory that all of them see, if there is one.

    What a text gets does not depend on the texts beside it, as it may where they are padded to one length.
    """

    def __init__(
        self, lengths: Sequence[int], like: Tensor, alibi_slopes: Tensor | None, memory: PromptMemory | None
    ) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.num_padded_tokens = sum(lengths)
        self._memory, self._lengths = memory, list(lengths)
        start = 0 if memory is None else memory.num_tokens
        query_T = torch.arange(start, start + max(lengths), device=like.device)
        distance_TS = torch.arange(start + max(lengths), device=like.device) - query_T[:, None]
        bias_HTS = torch.zeros(1, *distance_TS.shape, device=like.device)
        if alibi_slopes is not None:
            bias_HTS = alibi_slopes[:, None, None] * distance_TS
        self._bias_HTS = bias_HTS.masked_fill(distance_TS > 0, -torch.inf).to(like.dtype)

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self.seen.append((k_NHK, v_NHK))
        attended = []
        texts = (x_NHK.transpose(0, 1).split(self._lengths, dim=1) for x_NHK in (q_NHK, k_NHK, v_NHK))
        for q_HTK, k_HSK, v_HSK in zip(*texts, strict=True):
            if self._memory is not None:
                before_k, before_v = self._memory.layers[layer]
                k_HSK, v_HSK = torch.cat((before_k, k_HSK), dim=1), torch.cat((before_v, v_HSK), dim=1)
            bias_HTS = self._bias_HTS[:, : q_HTK.shape[1], : k_HSK.shape[1]]
            scores_HTS = torch.baddbmm(bias_HTS, q_HTK * q_HTK.shape[-1] ** -0.5, k_HSK.transpose(1, 2))
            attended.append(torch.bmm(scores_HTS.softmax(-1), v_HSK))
        return torch.cat(attended, dim=1).transpose(0, 1)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("a decoder-only model does not cross-attend")
