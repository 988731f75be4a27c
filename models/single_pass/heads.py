"""What single passes call of a model, by its head. A model lacks the methods of other heads: each pass checks first."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from batchloom.models.layers.attention import AttentionContext, EncoderMemory


class Backbone(Protocol):
    """Any model whose input alone gives hidden states."""

    def packed_hidden(self, ids_N: Tensor, lengths: list[int], /) -> Tensor:
        """Return the last hidden states [N, D] of packed sequences."""


class Decoding(Protocol):
    """Any model: all have a decoder."""

    def decoder_states(self, ids_N: Tensor, positions_N: Tensor, context: AttentionContext, /) -> Iterator[Tensor]:
        """Yield hidden states [N, D] before the first layer and after each."""


class Encoding(Protocol):
    """An encoder-decoder model."""

    def encoder_states(self, ids_N: Tensor, positions_N: Tensor, context: AttentionContext, /) -> Iterator[Tensor]:
        """Yield hidden states [N, D] before the first layer and after each."""

    def memory(self, ids_N: Tensor, lengths: list[int], num_layers: int, /) -> EncoderMemory:
        """Return what the decoder's first layers need of packed source sequences."""

    def shifted_input(self, ids_N: Tensor, lengths: list[int], /) -> Tensor:
        """Return decoder ids made from packed input."""


class SequenceClassifier(Protocol):
    """A model with a head over whole sequences."""

    def class_logits(self, ids_N: Tensor, lengths: list[int], /) -> Tensor:
        """Return logits [B, L] of packed sequences."""


class TokenClassifier(Backbone, Protocol):
    """A model with a head over tokens: classes, or start and end of an answer."""

    def token_logits(self, hidden_ND: Tensor, /) -> Tensor:
        """Return logits [N, L] of hidden states."""


class TokenPredictor(Backbone, Protocol):
    """A model with a head over the vocabulary."""

    def local_logits(self, hidden_ND: Tensor, /) -> Tensor:
        """Return the logits [N, V] that this rank holds."""


class Translator(Protocol):
    """An encoder-decoder language model."""

    def shifted(self, ids_M: Tensor, lengths: list[int], /) -> Tensor:
        """Return what the decoder reads to predict packed targets [M]: each shifted right behind its start token."""

    def packed_hidden(
        self,
        ids_N: Tensor,
        lengths: list[int],
        decoder_ids_M: Tensor,
        decoder_lengths: list[int],
        cross_query_lengths: list[int],
        /,
    ) -> Tensor:
        """Return the decoder's hidden states [M, D]; `cross_query_lengths`: how many of them read each sequence."""


class Stack(Protocol):
    """A language model with one stack."""

    def decode(self, ids_N: Tensor, positions_N: Tensor, context: AttentionContext, /) -> Tensor:
        """Return the hidden states [N, D] of packed tokens."""
