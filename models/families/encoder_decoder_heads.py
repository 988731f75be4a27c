"""Encoder-decoders with a head: generation, sequence classes, answer spans, and the decoder as a language model.

They know their backbone's hidden states and no layer.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from batchloom.models.errors import RequestError
from batchloom.models.families.config import EncoderDecoderConfig
from batchloom.models.families.decoder_only import DecoderOnlyModel
from batchloom.models.families.encoder_decoder import BareModel, EncoderDecoderModel, ModelWithHead
from batchloom.models.families.heads import AnswerSpans, LanguageModel, SequenceClasses
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.linear import frozen
from batchloom.models.layers.packing import lengths_to
from batchloom.models.layers.positions import positions_of
from batchloom.models.ranks.group import TensorParallel


class ConditionalGeneration(LanguageModel, ModelWithHead):
    """Encoder, decoder and a head over the vocabulary. Forward: logits [B, T, V] of the decoder's positions."""

    ZERO_IF_ABSENT: ClassVar[tuple[str, ...]] = ("final_logits_bias",)

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.final_logits_bias = frozen(1, config.vocab_size)


class ClassificationHead(nn.Module):
    """Two linear layers with tanh between them: [B, D] -> [B, L]. Small, so it is not divided among ranks."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, num_labels)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        logits_BL: Tensor = self.out_proj(torch.tanh(self.dense(hidden_BD)))
        return logits_BL


class SequenceClassification(SequenceClasses, ModelWithHead):
    """Classes of whole sequences, read at the decoder's last end token. Forward: logits [B, L]."""

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.classification_head = ClassificationHead(config.width, config.num_labels)

    def class_logits(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return logits [B, L] of packed sequences. Raises RequestError where one has no end token.

        Causal attention means that nothing after the end token can change it: the decoder stops there, and its last
        layer computes that one position.
        """
        ends = self._end_positions(input_ids_N, lengths)
        memory = self.memory(input_ids_N, lengths)
        decoder_lengths = [end + 1 for end in ends]
        decoder_ids_N = self.shifted_input(input_ids_N, lengths)
        if decoder_lengths != lengths:
            decoder_ids_N = decoder_ids_N[lengths_to(lengths, decoder_lengths, decoder_ids_N.device)]
        context = PackedAttention(decoder_lengths, causal=True, cross=memory)
        positions_N = positions_of(decoder_lengths, input_ids_N.device)
        logits_BL: Tensor = self.classification_head(self.decode_last(decoder_ids_N, positions_N, context))
        return logits_BL

    def check_tokens(self, token_ids: Sequence[int]) -> None:
        """Check one sequence. Raises RequestError as LoadedModel does, and if there is no end token."""
        super().check_tokens(token_ids)
        if self.config.eos_token_id not in token_ids:
            raise RequestError(self._no_end("The token list"))

    def _end_positions(self, input_ids_N: Tensor, lengths: list[int]) -> list[int]:
        """Return the position of each sequence's last end token. Raises RequestError where there is none."""
        ids = input_ids_N.tolist()
        ends, first = [], 0
        for row, length in enumerate(lengths):
            end = next((i for i in reversed(range(length)) if ids[first + i] == self.config.eos_token_id), None)
            if end is None:
                raise RequestError(self._no_end(f"Row {row}"))
            ends.append(end)
            first += length
        return ends

    def _no_end(self, what: str) -> str:
        return (
            f"{what} has no end token (id {self.config.eos_token_id}), where the classes are read. "
            "Encode with special tokens, and truncate before they are added."
        )


class QuestionAnswering(AnswerSpans, ModelWithHead):
    """Where an answer starts and ends, by the decoder's hidden states."""


class DecoderAlone(LanguageModel, DecoderOnlyModel):
    """A decoder without its encoder, as a language model. Forward: logits [B, T, V].

    Its layers have no cross-attention; the file's tensors for that are not read.
    """

    TIED = EncoderDecoderModel.TIED
    BARE: ClassVar[type[BareModel]]
    """The bare model whose decoder this is."""
    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.decoder = self.BARE.DECODER(config, group, self.BARE.LAYER, crosses=False)

    def decoder_states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        """Yield hidden states [N, D] before the first layer and after each; the last are `decode`'s."""
        return self.decoder.states(input_ids_N, positions_N, context)

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """Return the decoder's hidden states of packed tokens, norms included: [N, D]."""
        hidden_ND: Tensor = self.decoder(input_ids_N, positions_N, context)
        return hidden_ND

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Return the hidden states of each sequence's last token: [B, D]."""
        return self.decoder.last(input_ids_N, positions_N, context)
