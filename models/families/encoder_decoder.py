"""Models with an encoder and a decoder: what each offers, with a head or without. They know no layer and no norm."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.config import EncoderDecoderConfig
from batchloom.models.families.family import DecoderStart
from batchloom.models.families.stacks import DecoderStack, EncoderStack, Layer
from batchloom.models.families.table import family_of
from batchloom.models.layers.attention import AttentionContext, EncoderMemory, PackedAttention
from batchloom.models.layers.packing import Packing, packing_of
from batchloom.models.layers.positions import positions_of
from batchloom.models.ranks.group import TensorParallel
from batchloom.models.transfers import to_device


class EncoderDecoderModel(LoadedModel):
    """Encoder and decoder, apart and together, wherever a class keeps them."""

    is_encoder_decoder = True
    TIED: ClassVar[tuple[str, ...]] = (
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    )

    config: EncoderDecoderConfig

    @property
    @abstractmethod
    def backbone(self) -> "BareModel":
        """The model that holds the stacks: this one itself, or the one inside a model with a head."""

    @property
    def shifts_input(self) -> bool:
        """Whether missing decoder ids are made from the input."""
        return family_of(self.config).shifts_input

    def encode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """Return the encoder's hidden states of packed tokens: [N, D]. Positions count from 0 in each sequence."""
        hidden_ND: Tensor = self.backbone.encoder(input_ids_N, positions_N, context)
        return hidden_ND

    def encoder_states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        """Yield the encoder's hidden states [N, D] before its first layer and after each; the last are `encode`'s."""
        return self.backbone.encoder.states(input_ids_N, positions_N, context)

    def decoder_states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        """Yield the decoder's hidden states [N, D] before its first layer and after each; the last are `decode`'s."""
        return self.backbone.decoder.states(input_ids_N, positions_N, context)

    def cross_keys_values(self, encoded_ND: Tensor, num_layers: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return each decoder layer's keys and values [N, H, K] over the encoder's hidden states; once a request.

        `num_layers`: those of the first layers alone.
        """
        return self.backbone.decoder.cross_keys_values(encoded_ND, num_layers)

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """Return the decoder's hidden states of packed tokens, norms included: [N, D]."""
        hidden_ND: Tensor = self.backbone.decoder(input_ids_N, positions_N, context)
        return hidden_ND

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Return the hidden states of each sequence's last token, the last layer computed for these alone: [B, D]."""
        return self.backbone.decoder.last(input_ids_N, positions_N, context)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """Return the decoder's hidden states [N, D] of a padded batch, and where they belong.

        Raises RequestError where ids do not fit the model or each other, or are missing.
        """
        packing = self.packed(input_ids, attention_mask)
        input_ids_N, lengths = packing.pack(input_ids), packing.lengths
        if decoder_input_ids is None:
            return self.packed_hidden(input_ids_N, lengths), packing
        self.check_ids(decoder_input_ids, "decoder_input_ids")
        if len(decoder_input_ids) != len(input_ids):
            raise RequestError(
                f"decoder_input_ids hold {len(decoder_input_ids)} rows, input_ids {len(input_ids)}. Give as many."
            )
        decoder_packing = packing_of(decoder_input_ids, None)
        decoder_ids_N, decoder_lengths = decoder_packing.pack(decoder_input_ids), decoder_packing.lengths
        return self.packed_hidden(input_ids_N, lengths, decoder_ids_N, decoder_lengths), decoder_packing

    def packed_hidden(
        self,
        input_ids_N: Tensor,
        lengths: list[int],
        decoder_ids_N: Tensor | None = None,
        decoder_lengths: list[int] | None = None,
        cross_query_lengths: list[int] | None = None,
    ) -> Tensor:
        """Return the decoder's hidden states [tokens of the decoder, D] of packed sequences, without a cache.

        Without decoder ids the input is shifted. `cross_query_lengths`: how many of the decoder's tokens read each
        input, where several of its sequences read one. Raises RequestError for families that do not shift their input.
        """
        if decoder_ids_N is None or decoder_lengths is None:
            decoder_ids_N, decoder_lengths = self.shifted_input(input_ids_N, lengths), lengths
        memory = self.memory(input_ids_N, lengths)
        context = PackedAttention(decoder_lengths, True, cross=memory, cross_query_lengths=cross_query_lengths)
        return self.decode(decoder_ids_N, positions_of(decoder_lengths, input_ids_N.device), context)

    def memory(self, input_ids_N: Tensor, lengths: list[int], num_layers: int | None = None) -> EncoderMemory:
        """Return what the decoder needs of packed source sequences; `num_layers`: what its first layers do."""
        return EncoderMemory(lengths, self.cross_keys_values(self.packed_encoded(input_ids_N, lengths), num_layers))

    def packed_encoded(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return the encoder's hidden states [N, D] of packed sequences."""
        positions_N = positions_of(lengths, input_ids_N.device)
        return self.encode(input_ids_N, positions_N, PackedAttention(lengths, causal=False))

    def shifted_input(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return decoder ids made from packed input. Raises RequestError for families that demand them."""
        if not self.shifts_input:
            raise RequestError(
                f"{type(self).__name__} needs decoder_input_ids: none were given, and this family does not make "
                f"them from the input. Begin with the start token, {self.config.decoder_start_token_id}."
            )
        return self.shifted(input_ids_N, lengths)

    def shifted(self, ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return packed sequences, each moved one to the right, behind the token that the family's decoder starts from.

        Raises RequestError where config.json names no such token.
        """
        lengths_B = to_device(lengths, ids_N.device)
        firsts_B = lengths_B.cumsum(0) - lengths_B
        shifted_N = ids_N.roll(1)
        if family_of(self.config).decoder_start is DecoderStart.LAST_TOKEN:
            shifted_N[firsts_B] = ids_N[firsts_B + lengths_B - 1]
            return shifted_N
        if self.config.decoder_start_token_id is None:
            raise RequestError(
                f"{type(self).__name__} has no token for the decoder to start from. Set decoder_start_token_id in "
                "config.json."
            )
        shifted_N[firsts_B] = self.config.decoder_start_token_id
        return shifted_N


class BareModel(EncoderDecoderModel):
    """The stacks of a family and no head. Forward: the decoder's hidden states [B, T, D]."""

    LAYER: ClassVar[type[Layer]]
    """NormFirstLayer or NormAfterLayer."""
    DECODER: ClassVar[type[DecoderStack]] = DecoderStack

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.encoder = EncoderStack(config, group, self.LAYER)
        self.decoder = self.DECODER(config, group, self.LAYER, crosses=True)

    @property
    def backbone(self) -> "BareModel":
        return self


class ModelWithHead(EncoderDecoderModel):
    """A bare model inside, under its name in the files, and a head on its hidden states."""

    BARE: ClassVar[type[BareModel]]

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.model = self.BARE(config, group)

    @property
    def backbone(self) -> BareModel:
        return self.model
