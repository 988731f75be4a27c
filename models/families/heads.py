"""The heads of the encoder-decoder families beside generation: sequence classes, answer spans, the decoder alone.

They know their backbone's hidden states and no layer. BLOOM's heads are in its own file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from batchloom.models.errors import RequestError
from batchloom.models.families.config import BartConfig
from batchloom.models.families.decoder_only import DecoderOnlyModel
from batchloom.models.families.encoder_decoder import Decoder, EncoderDecoderModel
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.embedding import VocabularyHead
from batchloom.models.layers.packing import lengths_to, packing_of
from batchloom.models.layers.positions import positions_of
from batchloom.models.ranks.group import TensorParallel


class ClassificationHead(nn.Module):
    """Two linear layers with tanh between: [B, D] -> [B, L]. Small, so every rank computes all of it."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, num_labels)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        logits_BL: Tensor = self.out_proj(torch.tanh(self.dense(hidden_BD)))
        return logits_BL


class SequenceClassification(EncoderDecoderModel):
    """Classes of whole sequences, read at the decoder's last end token. Forward: logits [B, L]."""

    model: EncoderDecoderModel

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.classification_head = ClassificationHead(config.d_model, config.num_labels)

    @property
    def backbone(self) -> EncoderDecoderModel:
        return self.model

    def class_logits(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Logits [B, L] of packed sequences. Raises RequestError where one has no end token.

        Causal attention means that nothing after the end token can change it: the decoder stops there, and its last
        layer computes that one position.
        """
        ends = self._end_positions(input_ids_N, lengths)
        memory = self.memory(input_ids_N, lengths)
        decoder_lengths = [end + 1 for end in ends]
        decoder_ids_N = self.shifted(input_ids_N, lengths)
        if decoder_lengths != lengths:
            decoder_ids_N = decoder_ids_N[lengths_to(lengths, decoder_lengths).to(decoder_ids_N.device)]
        context = PackedAttention(decoder_lengths, causal=True, cross=memory)
        positions_N = positions_of(decoder_lengths).to(input_ids_N.device)
        logits_BL: Tensor = self.classification_head(self.decode_last(decoder_ids_N, positions_N, context))
        return logits_BL

    def check_tokens(self, token_ids: Sequence[int]) -> None:
        """Raises RequestError where the model cannot read one sequence; here also for want of an end token."""
        super().check_tokens(token_ids)
        if self.config.eos_token_id not in token_ids:
            raise RequestError(self._no_end("The token list"))

    def _end_positions(self, input_ids_N: Tensor, lengths: list[int]) -> list[int]:
        """Where each sequence's last end token is, counting from 0 in the sequence."""
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

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.check_ids(input_ids)
        packing = packing_of(input_ids, attention_mask)
        return self.class_logits(packing.pack(input_ids), packing.lengths)


class QuestionAnswering(EncoderDecoderModel):
    """Where an answer starts and ends. Forward: (start [B, T], end [B, T]), logits."""

    model: EncoderDecoderModel

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.qa_outputs = nn.Linear(config.d_model, 2)

    @property
    def backbone(self) -> EncoderDecoderModel:
        return self.model

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        """Start and end logits of hidden states: [N, 2]."""
        logits_N2: Tensor = self.qa_outputs(hidden_ND)
        return logits_N2

    @torch.inference_mode()
    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden_ND, packing = self.hidden_states(input_ids, attention_mask, decoder_input_ids)
        start_BT, end_BT = packing.unpack(self.token_logits(hidden_ND)).unbind(-1)
        return start_BT, end_BT


class DecoderAlone(DecoderOnlyModel):
    """A decoder without its encoder, as a language model. Forward: logits [B, T, V].

    Its layers have no cross-attention; a file's tensors for it stay unread.
    """

    TIED = EncoderDecoderModel.TIED
    config: BartConfig
    decoder: Decoder

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.lm_head = VocabularyHead(config.d_model, config.vocab_size, group)

    @property
    def num_layers(self) -> int:
        return self.config.decoder_layers

    @property
    def num_heads(self) -> int:
        return self.group.share(self.config.decoder_attention_heads, "attention heads")

    @property
    def head_dim(self) -> int:
        return self.config.d_model // self.config.decoder_attention_heads

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """The decoder's hidden states of packed tokens, norms included: [N, D]."""
        return self.decoder(input_ids_N, positions_N, context)

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Hidden states of each sequence's last token: [B, D]."""
        return self.decoder.last(input_ids_N, positions_N, context)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits over the vocabulary, [N, V]; ask for the positions that choose a token and no others."""
        return self.lm_head.whole(self.local_logits(hidden_ND))

    def local_logits(self, hidden_ND: Tensor) -> Tensor:
        """Of these, the columns of this rank."""
        logits_NV: Tensor = self.lm_head(hidden_ND)
        return logits_NV

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden_ND, packing = self.hidden_states(input_ids, attention_mask)
        return packing.unpack(self.logits(hidden_ND))
