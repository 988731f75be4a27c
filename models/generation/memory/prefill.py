"""Prefill: the keys and values of prompts, by the encoder or by the decoder itself. It knows no search and no queue.

Prompts are packed, not padded. Logits of prompt tokens are not computed. A decoder-only model's last prompt token is
left to the first decode step, which is then like any other; so is the last token of an answer's prefix.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.memory.beginnings import Beginnings, selected
from batchloom.models.generation.memory.prefixes import Prefix, Prefixes
from batchloom.models.generation.memory.prompt_memory import PromptMemory
from batchloom.models.generation.model import GenerativeEncoderDecoder, GenerativeModel, Model, has_encoder
from batchloom.models.generation.requests import Request
from batchloom.models.layers.attention import EncoderMemory, PackedAttention
from batchloom.models.layers.native.library import dense_kernels
from batchloom.models.layers.native.packed_attention import attend_packed
from batchloom.models.layers.positions import positions_of
from batchloom.models.layers.product_attention import ProductAttention
from batchloom.models.transfers import to_device

# Without a kernel longer prompts go through fused attention: the scores of one prompt are held at once, 32 MB at 1024
# tokens and 16 heads.
MAX_TOKENS_BY_PRODUCTS = 1024


@dataclass(frozen=True)
class PromptBatch:
    """Several requests' prompts as the decoder sees them: packed keys and values [N, H, K] of each layer."""

    requests: Sequence[Request]
    lengths: Sequence[int]  # of each request, without the prefix; 0 where nothing but the prefix is attended to
    layers: Sequence[tuple[Tensor, Tensor]]
    prefix: Prefix | None = None  # which all of these prompts begin with


@dataclass(frozen=True)
class Prefilled:
    """The prompts of the requests that start, and how many positions their attention computed, padding included."""

    batches: Sequence[PromptBatch]
    num_positions: int
    beginnings: Beginnings | None = None
    """Of each request what its own tokens begin with; None where no decoder behind an encoder has a prefix."""


def prefill(model: GenerativeModel, requests: Sequence[Request], prefixes: Prefixes) -> Prefilled:
    """Compute the prompts of requests that start. `prefixes` holds common beginnings; missing ones are added."""
    return _encode(model, requests) if has_encoder(model) else _read(model, requests, prefixes)


def _encode(model: GenerativeEncoderDecoder, requests: Sequence[Request]) -> Prefilled:
    """Compute each decoder layer's keys and values over the encoder's output, once a request."""
    prompts = [request.prompt_ids for request in requests]
    lengths = [len(prompt) for prompt in prompts]
    context = _EncoderProducts(lengths) if _prefers_products(model) else PackedAttention(lengths, causal=False)
    encoded_ND = model.encode(_packed(prompts, model.device), positions_of(lengths, model.device), context)
    batch = PromptBatch(requests, lengths, model.cross_keys_values(encoded_ND))
    beginnings, num_positions = _begin(model, batch)
    return Prefilled([batch], context.num_padded_tokens + num_positions, beginnings)


def _begin(model: GenerativeEncoderDecoder, batch: PromptBatch) -> tuple[Beginnings | None, int]:
    """Compute the decoder's keys and values of answers' prefixes, and return the number of positions computed."""
    begun = [request.begun_ids for request in batch.requests]
    lengths = [len(ids) for ids in begun]
    asking = [number for number, length in enumerate(lengths) if length]
    if not asking:
        return None, 0
    cross_lengths = [batch.lengths[number] for number in asking]
    cross = EncoderMemory(cross_lengths, selected(batch.layers, batch.lengths, asking))
    own = [lengths[number] for number in asking]
    context = _FusedPrefill(own, None, cross)
    model.decode(_packed(begun, model.device), positions_of(own, model.device), context)
    return Beginnings(lengths, context.keys_values), context.num_padded_tokens


def _read(model: GenerativeModel, requests: Sequence[Request], prefixes: Prefixes) -> Prefilled:
    """Compute a decoder-only model's keys and values of all prompt tokens but the last; a common prefix only once."""
    num_positions = 0
    with prefixes.computing:
        for token_ids in prefixes.missing([request.prompt_ids for request in requests]):
            layers, num = _keys_values(model, [token_ids], None)
            prefixes.hold(Prefix(token_ids, split_memories(layers, [len(token_ids)], 0, model.alibi_slopes)[0]))
            num_positions += num
    by_prefix: dict[Prefix | None, list[Request]] = {}
    for request in requests:
        by_prefix.setdefault(prefixes.find(request.prompt_ids), []).append(request)
    batches = []
    for prefix, members in by_prefix.items():
        start = 0 if prefix is None else len(prefix.token_ids)
        tails = [request.prompt_ids[start:-1] for request in members]
        layers, num = _keys_values(model, [tail for tail in tails if tail], prefix)
        batches.append(PromptBatch(members, [len(tail) for tail in tails], layers, prefix))
        num_positions += num
    # The last token of each prompt, which the first decode step computes, counts here.
    return Prefilled(batches, num_positions + len(requests))


def _keys_values(
    model: GenerativeModel, tails: Sequence[Sequence[int]], prefix: Prefix | None
) -> tuple[Sequence[tuple[Tensor, Tensor]], int]:
    """Return packed keys and values of token lists that follow `prefix`, and the number of positions computed."""
    if not tails:
        return [], 0
    lengths = [len(tail) for tail in tails]
    start = 0 if prefix is None else len(prefix.token_ids)
    context: _FusedPrefill | _ProductPrefill
    kernels = _kernels(model)
    is_long = kernels is None and max(lengths) > MAX_TOKENS_BY_PRODUCTS
    if prefix is None and (is_long or not _prefers_products(model)):
        context = _FusedPrefill(lengths, model.alibi_slopes)
    else:
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        memory = None if prefix is None else prefix.memory
        context = _ProductPrefill(lengths, like, model.alibi_slopes, memory, kernels)
    position_N = positions_of(lengths, model.device) + start
    model.decode(_packed(tails, model.device), position_N, context)
    return context.keys_values, context.num_padded_tokens


def split_memories(
    layers: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], start: int, alibi_slopes: Tensor | None
) -> list[PromptMemory]:
    """Split packed keys and values of several prompts, which begin at position `start`, into one memory for each.

    Each is a contiguous copy: the packed tensors can be freed, and a decode step reads each copy sequentially.
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
        memories.append(PromptMemory(own, length, alibi_H1S, start + length))
    return memories


def _prefers_products(model: Model) -> bool:
    """Whether products beat torch's fused attention: on a CPU in bfloat16, 1.7 to 2 times from 100 tokens on."""
    return model.device.type == "cpu" and model.dtype == torch.bfloat16


def _kernels(model: Model) -> ctypes.CDLL | None:
    """Return the compiled kernels, which beat both, where a model can have them."""
    return dense_kernels(torch.bfloat16) if model.device.type == "cpu" and model.dtype == torch.bfloat16 else None


def _packed(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return to_device([token for prompt in prompts for token in prompt], device)


class _EncoderProducts:
    """Bidirectional attention by products of each prompt's exact size, without padding."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.num_padded_tokens = sum(lengths)
        self._attention = ProductAttention(lengths, lengths, causal=False)

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:  # noqa: ARG002
        return self._attention(q_NHK, k_NHK, v_NHK, scale=q_NHK.shape[-1] ** -0.5)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("an encoder does not cross-attend")


class _FusedPrefill(PackedAttention):
    """Causal attention over whole prompts that records the keys and values of each layer."""

    def __init__(self, lengths: Sequence[int], alibi_slopes: Tensor | None, cross: EncoderMemory | None = None) -> None:
        super().__init__(lengths, causal=True, alibi_slopes=alibi_slopes, cross=cross)
        self.keys_values: list[tuple[Tensor, Tensor]] = []

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self.keys_values.append((k_NHK, v_NHK))
        return super().attend(layer, q_NHK, k_NHK, v_NHK)


class _ProductPrefill:
    """As _FusedPrefill, by a kernel or products of each prompt's exact size, after a common prefix if there is one.

    A prompt's result does not depend on the prompts beside it, as it may where they are padded to one length.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        like: Tensor,
        alibi_slopes: Tensor | None,
        prefix: PromptMemory | None,
        kernels: ctypes.CDLL | None,
    ) -> None:
        self.keys_values: list[tuple[Tensor, Tensor]] = []
        self.num_padded_tokens = sum(lengths)
        self._prefix, self._lengths, self._slopes_H = prefix, list(lengths), alibi_slopes
        self._kernels = kernels
        if kernels is None:
            self._bias_HTS = self._bias(prefix, alibi_slopes, like)

    def _bias(self, prefix: PromptMemory | None, alibi_slopes: Tensor | None, like: Tensor) -> Tensor:
        """Return what is added to scores: ALiBi, and -inf for the tokens after a query's own."""
        start = 0 if prefix is None else prefix.num_tokens
        longest = start + max(self._lengths)
        query_T = torch.arange(start, longest, device=like.device)
        distance_TS = torch.arange(longest, device=like.device) - query_T[:, None]
        bias_HTS = torch.zeros(1, *distance_TS.shape, device=like.device)
        if alibi_slopes is not None:
            bias_HTS = alibi_slopes[:, None, None] * distance_TS
        return bias_HTS.masked_fill(distance_TS > 0, -torch.inf).to(like.dtype)

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self.keys_values.append((k_NHK, v_NHK))
        if self._kernels is not None:
            start = 0 if self._prefix is None else self._prefix.num_tokens
            lengths = [(length, start + length) for length in self._lengths]
            k_SHK, v_SHK = (self._after_prefix(layer, kind, own) for kind, own in enumerate((k_NHK, v_NHK)))
            scale = q_NHK.shape[-1] ** -0.5
            return attend_packed(self._kernels, q_NHK, k_SHK, v_SHK, lengths, True, scale, self._slopes_H)
        attended = []
        prompts = (x_NHK.transpose(0, 1).split(self._lengths, dim=1) for x_NHK in (q_NHK, k_NHK, v_NHK))
        for q_HTK, k_HSK, v_HSK in zip(*prompts, strict=True):
            if self._prefix is not None:
                prefix_k, prefix_v = self._prefix.layers[layer]
                k_HSK, v_HSK = torch.cat((prefix_k, k_HSK), dim=1), torch.cat((prefix_v, v_HSK), dim=1)
            bias_HTS = self._bias_HTS[:, : q_HTK.shape[1], : k_HSK.shape[1]]
            scores_HTS = torch.baddbmm(bias_HTS, q_HTK * q_HTK.shape[-1] ** -0.5, k_HSK.transpose(1, 2))
            attended.append(torch.bmm(scores_HTS.softmax(-1), v_HSK))
        return torch.cat(attended, dim=1).transpose(0, 1)

    def _after_prefix(self, layer: int, kind: int, own_NHK: Tensor) -> Tensor:
        """Return packed keys (`kind` 0) or values (1) of each prompt with those of the prefix before them."""
        if self._prefix is None:
            return own_NHK
        prefix_SHK = self._prefix.layers[layer][kind].transpose(0, 1)
        return torch.cat([part for own in own_NHK.split(self._lengths) for part in (prefix_SHK, own)])

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("a decoder-only model does not cross-attend")
