"""Attention over sequences that begin alike, for models with one stack. It knows no weights.

Of a prompt and its continuations each token is packed once, so projections and feed-forward layers compute it once:

    packed      p p p a a b b b        sequences      p p p a a        p p p b b b

Attention alone goes over whole sequences: their queries, keys and values are copies, of which those of a prefix's later
copies are dropped. So every kernel and ALiBi serve as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.layers.attention import PackedAttention
from batchloom.models.transfers import queued

# Tokens of whole sequences that are copied at a time: 100 continuations of a long prompt are many times its tokens.
MOST_TOKENS = 1 << 14


@dataclass(frozen=True)
class WholeSequences:
    """Some of the whole sequences."""

    lengths: list[int]
    token_S: Tensor
    """The packed tokens that they consist of."""
    own_S: Tensor
    """Whether a token's result is taken from here; bool."""


class SharedPrefixAttention:
    """The context of one forward over prefixes, each packed before its suffixes; without a KV cache.

    `prefix_lengths`: tokens of each prefix; `suffix_lengths`: tokens of each of its suffixes, one suffix at least.
    """

    def __init__(
        self,
        prefix_lengths: Sequence[int],
        suffix_lengths: Sequence[Sequence[int]],
        alibi_slopes: Tensor | None = None,
    ) -> None:
        # Where each prefix has one suffix, the packed tokens are the sequences.
        self._whole = None
        if all(len(own) == 1 for own in suffix_lengths):
            lengths = [prefix + own for prefix, (own,) in zip(prefix_lengths, suffix_lengths, strict=True)]
            self._whole = PackedAttention(lengths, causal=True, alibi_slopes=alibi_slopes)
        self._parts = [] if self._whole else list(_parts(prefix_lengths, suffix_lengths))
        self._contexts = [PackedAttention(part.lengths, causal=True, alibi_slopes=alibi_slopes) for part in self._parts]
        self._indexes: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Return the self-attention of all packed tokens: [N, H, K]."""
        if self._whole is not None:
            return self._whole.attend(layer, q_NHK, k_NHK, v_NHK)
        attended_NHK = torch.empty_like(q_NHK, memory_format=torch.contiguous_format)
        for context, (token_S, place_M, own_M) in zip(self._contexts, self._on(q_NHK.device), strict=True):
            attended_SHK = context.attend(layer, q_NHK[token_S], k_NHK[token_S], v_NHK[token_S])
            attended_NHK[own_M] = attended_SHK[place_M]
        return attended_NHK

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        raise NotImplementedError("an encoder's output is shared by PackedAttention: see its `cross_query_lengths`")

    def _on(self, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return for each part: the tokens copied [S], which of them are results [M], and whose tokens' [M]."""
        if self._indexes is None:
            places = [part.own_S.nonzero().flatten() for part in self._parts]
            self._indexes = [
                (queued(part.token_S, device), queued(place_M, device), queued(part.token_S[place_M], device))
                for part, place_M in zip(self._parts, places, strict=True)
            ]
        return self._indexes


def shared_positions(prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]]) -> Tensor:
    """Return the positions of the packed tokens [N]; each suffix counts on from its prefix: ppp aa bbb -> 01234345."""
    ranges = []
    for prefix, suffixes in zip(prefix_lengths, suffix_lengths, strict=True):
        ranges += [torch.arange(prefix), *(torch.arange(prefix, prefix + suffix) for suffix in suffixes)]
    return torch.cat(ranges)


def _parts(prefix_lengths: Sequence[int], suffix_lengths: Sequence[Sequence[int]]) -> Iterator[WholeSequences]:
    """Yield the whole sequences, at most MOST_TOKENS at a time."""
    waiting: list[tuple[int, Tensor, Tensor]] = []
    num_tokens = start = 0
    for prefix, suffixes in zip(prefix_lengths, suffix_lengths, strict=True):
        of_prefix = torch.arange(start, start + prefix)
        start += prefix
        for number, suffix in enumerate(suffixes):
            length = prefix + suffix
            if waiting and num_tokens + length > MOST_TOKENS:
                yield _joined(waiting)
                waiting, num_tokens = [], 0
            tokens = torch.cat((of_prefix, torch.arange(start, start + suffix)))
            waiting.append((length, tokens, torch.arange(length) >= (prefix if number else 0)))
            num_tokens, start = num_tokens + length, start + suffix
    yield _joined(waiting)


def _joined(sequences: Sequence[tuple[int, Tensor, Tensor]]) -> WholeSequences:
    lengths, tokens, own = zip(*sequences, strict=True)
    return WholeSequences(list(lengths), torch.cat(tokens), torch.cat(own))
