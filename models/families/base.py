"""What every loaded model offers, whatever its family. It knows no layer."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from batchloom.models.errors import RequestError
from batchloom.models.families.config import BartConfig, BloomConfig
from batchloom.models.ranks.calls import Call
from batchloom.models.ranks.group import TensorParallel


class LoadedModel(nn.Module):
    """A model with its weights; `models.load_model` makes it.

    A forward takes padded ids and gives logits `[B, T, V]` (language models), `[B, L]` (sequence classes), `[B, T, L]`
    (token classes), `(start [B, T], end [B, T])` (answers) or hidden states `[B, T, D]` (bare models); padding gives
    zeros. Padding may stand anywhere: positions count real tokens, so a row is answered as it is alone. (transformers'
    learned positions count padding on the left.)
    """

    is_encoder_decoder: ClassVar[bool]
    # Names of one and the same matrix, without prefix; a file may hold any of them.
    TIED: ClassVar[tuple[str, ...]] = ()
    # Tensors that are zeros where the file leaves them out.
    ZERO_IF_ABSENT: ClassVar[tuple[str, ...]] = ()

    config: BartConfig | BloomConfig
    group: TensorParallel
    generation_defaults: dict[str, Any]  # config.json's generation fields, overlaid by generation_config.json's

    def __init__(self, config: BartConfig | BloomConfig, group: TensorParallel) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.generation_defaults = {}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self.group.collective_call(Call.FORWARD, arguments, keywords):
            return super().__call__(*arguments, **keywords)

    @property
    def alibi_slopes(self) -> Tensor | None:
        """ALiBi's slopes of this rank's heads, float32 [H]; None where positions are learned."""
        return None

    @property
    def device(self) -> torch.device:
        # Not the first parameter's: weights in the processor's own order leave a parameter without memory behind.
        return next(parameter.device for parameter in self.parameters() if not parameter.is_meta)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def max_positions(self) -> int | None:
        """The longest sequence in tokens, or None where positions are not limited."""
        return self.config.max_position_embeddings if isinstance(self.config, BartConfig) else None

    @property
    def hidden_size(self) -> int:
        """The width of hidden states."""
        return self.config.d_model if isinstance(self.config, BartConfig) else self.config.hidden_size

    def check_tokens(self, token_ids: Sequence[int]) -> None:
        """Raises RequestError where the model cannot read one sequence."""
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

    def check_ids(self, input_ids_BT: Tensor, what: str = "input_ids") -> None:
        """Raises RequestError for a padded batch with ids outside the vocabulary or rows longer than the positions."""
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
