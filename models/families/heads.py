"""Heads that several families have, on the hidden states of any model. They know no stack.

Each is a mixin: class BloomForCausalLM(LanguageModel, BloomWithHead).
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from batchloom.models.families.base import LoadedModel
from batchloom.models.families.config import ModelConfig
from batchloom.models.layers.embedding import VocabularyHead
from batchloom.models.ranks.group import TensorParallel


class LanguageModel(LoadedModel):
    """A head over the vocabulary. Forward: logits [B, T, V]."""

    final_logits_bias: Tensor | None
    """Added to the logits, where the checkpoint has it."""

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.lm_head = VocabularyHead(config.width, config.vocab_size, group)
        self.final_logits_bias = None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits over the vocabulary, [N, V]; ask for the positions that choose a token and no others."""
        return self.lm_head.whole(self.local_logits(hidden_ND))

    def local_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return this rank's columns of the logits."""
        logits_NV: Tensor = self.lm_head(hidden_ND, self.final_logits_bias)
        return logits_NV

    def of_tokens(self, hidden_ND: Tensor) -> Tensor:
        return self.logits(hidden_ND)


class TokenHead(LoadedModel):
    """A small head on each token, computed whole by every rank. Forward: its logits [B, T, L]."""

    @abstractmethod
    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits of hidden states: [N, L]."""

    def of_tokens(self, hidden_ND: Tensor) -> Tensor:
        return self.token_logits(hidden_ND)


class AnswerSpans(TokenHead):
    """Where an answer starts and ends. Forward: (start [B, T], end [B, T]), logits."""

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.qa_outputs = nn.Linear(config.width, 2)

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        logits_N2: Tensor = self.qa_outputs(hidden_ND)
        return logits_N2

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        start_BT, end_BT = super().forward(input_ids, attention_mask, decoder_input_ids).unbind(-1)
        return start_BT, end_BT


class SequenceClasses(LoadedModel):
    """Classes of whole sequences. Forward: logits [B, L]."""

    @abstractmethod
    def class_logits(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return logits [B, L] of packed sequences, the last layer computed at one position each."""

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        packing = self.packed(input_ids, attention_mask)
        return self.class_logits(packing.pack(input_ids), packing.lengths)
