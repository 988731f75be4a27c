"""The interface of every loaded model, whatever its family. It knows no layer."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from batchloom.models.errors import RequestError
from batchloom.models.families.config import ModelConfig
from batchloom.models.layers.packing import Packing, packing_of
from batchloom.models.ranks.calls import Call
from batchloom.models.ranks.group import TensorParallel


class LoadedModel(nn.Module):
    """A model with its weights; `models.load_model` makes it.

    A forward takes padded ids and gives logits `[B, T, V]` (language models), `[B, L]` (sequence classes), `[B, T, L]`
    (token classes), `(start [B, T], end [B, T])` (answers) or hidden states `[B, T, D]` (bare models); padding gives
    zeros. Padding may be anywhere: positions count real tokens, so a row's answer does not depend on its padding.
    (transformers' learned positions count padding on the left.) Padding between tokens is refused where positions are
    learned.
    """

    is_encoder_decoder: ClassVar[bool]
    # Names of one tied matrix, without prefix; a file may hold any of them.
    TIED: ClassVar[tuple[str, ...]] = ()
    # Tensors that default to zeros if the file does not have them.
    ZERO_IF_ABSENT: ClassVar[tuple[str, ...]] = ()

    config: ModelConfig
    group: TensorParallel
    generation_defaults: dict[str, Any]  # config.json's generation fields, overlaid by generation_config.json's

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.generation_defaults = {}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self.group.collective_call(Call.FORWARD, arguments, keywords):
            return super().__call__(*arguments, **keywords)

    @property
    def alibi_slopes(self) -> Tensor | None:
        """The ALiBi slopes of this rank's heads, float32 [H]; None for learned positions."""
        return None

    @property
    def device(self) -> torch.device:
        # Not the first parameter's: a weight that was packed for the processor leaves a meta parameter behind.
        return next(parameter.device for parameter in self.parameters() if not parameter.is_meta)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return self.config.decoder.num_layers

    @property
    def num_heads(self) -> int:
        """Attention heads of a decoder layer on this rank."""
        return self.group.share(self.config.decoder.num_heads, "attention heads")

    @property
    def head_dim(self) -> int:
        """The width of a decoder's attention head."""
        return self.config.head_dim

    @property
    def max_positions(self) -> int | None:
        """The longest sequence in tokens, or None where positions are not limited."""
        return self.config.max_positions

    @property
    def hidden_size(self) -> int:
        """The width of hidden states."""
        return self.config.width

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> Tensor:
        hidden_ND, packing = self.hidden_states(input_ids, attention_mask, decoder_input_ids)
        return packing.unpack(self.of_tokens(hidden_ND))

    @abstractmethod
    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """Return the hidden states [N, D] of a padded batch, and where they belong.

        Raises RequestError where ids do not fit the model.
        """

    def of_tokens(self, hidden_ND: Tensor) -> Tensor:
        """Return what forward gives for each token; here the hidden states themselves."""
        return hidden_ND

    def check_tokens(self, token_ids: Sequence[int]) -> None:
        """Check one sequence. Raises RequestError if it is empty, too long or has ids outside the vocabulary."""
        if not token_ids:
            raise RequestError("The token list is empty; one token at least is needed.")
        if self.max_positions is not None and len(token_ids) > self.max_positions:
            raise RequestError(
                f"{len(token_ids)} tokens are more than the model's {self.max_positions} positions. Shorten the text."
            )
        if min(token_ids) < 0 or max(token_ids) >= self.config.vocab_size:
            raise RequestError(
                f"Ids from {min(token_ids)} to {max(token_ids)} found; the model's embedding has rows 0 to "
                f"{self.config.vocab_size - 1}. Use the tokenizer that belongs to this checkpoint."
            )

    def packed(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None) -> Packing:
        """Return where the tokens of a padded batch are.

        Raises RequestError for ids that do not fit, and where padding is between tokens of a model with positions.
        """
        self.check_ids(input_ids_BT)
        packing = packing_of(input_ids_BT, attention_mask_BT)
        if self.max_positions is not None and attention_mask_BT is not None and (rows := packing.rows_with_holes):
            raise RequestError(
                f"attention_mask has zeros between the tokens of rows {rows}. Whether masked tokens count as positions "
                "is not the same everywhere: take them out of input_ids."
            )
        return packing

    def check_ids(self, input_ids_BT: Tensor, what: str = "input_ids") -> None:
        """Check a padded batch. Raises RequestError for ids outside the vocabulary and rows that are too long."""
        if input_ids_BT.dim() != 2 or input_ids_BT.numel() == 0:
            raise RequestError(
                f"{what} must be [rows, tokens], one at least of each; found {list(input_ids_BT.shape)}."
            )
        num_tokens = input_ids_BT.shape[1]
        if self.max_positions is not None and num_tokens > self.max_positions:
            raise RequestError(
                f"{what} holds {num_tokens} tokens a row; the model has {self.max_positions} positions. Shorten it."
            )
        low, high, vocab_size = int(input_ids_BT.min()), int(input_ids_BT.max()), self.config.vocab_size
        if low < 0 or high >= vocab_size:
            raise RequestError(
                f"{what} holds ids from {low} to {high}; the model's embedding has rows 0 to {vocab_size - 1}. "
                "Use the tokenizer that belongs to this checkpoint."
            )
