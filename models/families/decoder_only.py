"""Models with one causal stack: BLOOM, and the decoders of encoder-decoders loaded alone. It knows no layer."""

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.families.base import LoadedModel
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.packing import Packing
from batchloom.models.layers.positions import positions_of


class DecoderOnlyModel(LoadedModel):
    """One causal stack over packed tokens."""

    is_encoder_decoder = False

    @abstractmethod
    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """Return hidden states of packed tokens, norms included: [N, D]. Positions count from 0 in each sequence."""

    @abstractmethod
    def decoder_states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        """Yield hidden states [N, D] before the first layer and after each; the last are `decode`'s."""

    @abstractmethod
    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Return hidden states of each sequence's last token: [B, D]. The last layer computes these positions only."""

    def packed_hidden(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return hidden states [N, D] of packed sequences, in one forward without a KV cache."""
        context = PackedAttention(lengths, causal=True, alibi_slopes=self.alibi_slopes)
        return self.decode(input_ids_N, positions_of(lengths, input_ids_N.device), context)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """Return the hidden states [N, D] of a padded batch, and where they belong.

        Raises RequestError where ids do not fit the model, or decoder ids are given.
        """
        if decoder_input_ids is not None:
            raise RequestError(f"{type(self).__name__} has no encoder: give decoder_input_ids as input_ids.")
        packing = self.packed(input_ids, attention_mask)
        return self.packed_hidden(packing.pack(input_ids), packing.lengths), packing
