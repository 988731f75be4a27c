"""What BART and the two Blenderbots share: the models around their stacks.

It knows no layer: each family's file writes its own, so that the place of the norms is read there and not looked up.
"""

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.config import BartConfig
from batchloom.models.layers.attention import AttentionContext, EncoderMemory, PackedAttention
from batchloom.models.layers.embedding import VocabularyHead
from batchloom.models.layers.linear import frozen
from batchloom.models.layers.packing import Packing, packing_of
from batchloom.models.layers.positions import positions_of
from batchloom.models.ranks.group import TensorParallel


class Encoder(Protocol):
    """A family's encoder stack."""

    def __call__(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor: ...


class Decoder(Protocol):
    """A family's decoder stack; `last` gives the last tokens' rows of what a call gives."""

    layers: Any

    def __call__(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor: ...

    def last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor: ...


class EncoderDecoderModel(LoadedModel):
    """The bare model of a family: encoder and decoder, apart and together. Forward: hidden states [B, T, D]."""

    is_encoder_decoder = True
    TIED: ClassVar[tuple[str, ...]] = (
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    )
    # BART makes missing decoder ids by shifting the input; the Blenderbots demand them.
    shifts_input: ClassVar[bool]

    config: BartConfig

    encoder: Encoder
    decoder: Decoder

    @property
    def backbone(self) -> "EncoderDecoderModel":
        """Where the stacks are: this model itself, or the one inside a model with a head."""
        return self

    @property
    def num_layers(self) -> int:
        return self.config.decoder_layers

    @property
    def num_heads(self) -> int:
        return self.group.share(self.config.decoder_attention_heads, "attention heads")

    @property
    def head_dim(self) -> int:
        return self.config.d_model // self.config.decoder_attention_heads

    def encode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """The encoder's hidden states of packed tokens: [N, D]. Positions count from 0 in each sequence."""
        return self.backbone.encoder(input_ids_N, positions_N, context)

    def cross_keys_values(self, encoded_ND: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [N, H, K] of each decoder layer over the encoder's hidden states; made once a request."""
        return [layer.encoder_attn.keys_values(encoded_ND) for layer in self.backbone.decoder.layers]

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        """The decoder's hidden states of packed tokens, norms included: [N, D]."""
        return self.backbone.decoder(input_ids_N, positions_N, context)

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Hidden states of each sequence's last token, the last layer computed for these alone: [B, D]."""
        return self.backbone.decoder.last(input_ids_N, positions_N, context)

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> Tensor:
        hidden_ND, packing = self.hidden_states(input_ids, attention_mask, decoder_input_ids)
        return packing.unpack(hidden_ND)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor | None
    ) -> tuple[Tensor, Packing]:
        """The decoder's hidden states [N, D] of a padded batch, and where they belong."""
        self.check_ids(input_ids)
        packing = packing_of(input_ids, attention_mask)
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
    ) -> Tensor:
        """The decoder's hidden states of packed sequences, [tokens of the decoder, D], in one forward without a cache.

        Without decoder ids the input is shifted, in the families that do so.
        """
        if decoder_ids_N is None or decoder_lengths is None:
            decoder_ids_N, decoder_lengths = self.shifted(input_ids_N, lengths), lengths
        context = PackedAttention(decoder_lengths, causal=True, cross=self.memory(input_ids_N, lengths))
        return self.decode(decoder_ids_N, positions_of(decoder_lengths).to(input_ids_N.device), context)

    def memory(self, input_ids_N: Tensor, lengths: list[int]) -> EncoderMemory:
        """What the decoder needs of packed source sequences."""
        return EncoderMemory(lengths, self.cross_keys_values(self.packed_encoded(input_ids_N, lengths)))

    def packed_encoded(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """The encoder's hidden states [N, D] of packed sequences."""
        positions_N = positions_of(lengths).to(input_ids_N.device)
        return self.encode(input_ids_N, positions_N, PackedAttention(lengths, causal=False))

    def shifted(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Decoder ids made from packed input: each sequence moved one to the right, the start token before it."""
        start = self.config.decoder_start_token_id
        if not self.shifts_input or start is None:
            raise RequestError(
                f"{type(self).__name__} needs decoder_input_ids: none were given, and this family does not make "
                f"them from the input. Begin with the start token, {start}."
            )
        shifted_N = input_ids_N.roll(1)
        lengths_B = torch.tensor(lengths)
        shifted_N[(lengths_B.cumsum(0) - lengths_B).to(shifted_N.device)] = start
        return shifted_N


class ConditionalGeneration(EncoderDecoderModel):
    """Encoder, decoder and a head over the vocabulary. Forward: logits [B, T, V] of the decoder's positions."""

    ZERO_IF_ABSENT: ClassVar[tuple[str, ...]] = ("final_logits_bias",)

    model: EncoderDecoderModel

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.lm_head = VocabularyHead(config.d_model, config.vocab_size, group)
        self.final_logits_bias = frozen(1, config.vocab_size)

    @property
    def backbone(self) -> EncoderDecoderModel:
        return self.model

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits over the vocabulary, [N, V]; ask for the positions that choose a token and no others."""
        return self.lm_head.whole(self.local_logits(hidden_ND))

    def local_logits(self, hidden_ND: Tensor) -> Tensor:
        """Of these, the columns of this rank."""
        logits_NV: Tensor = self.lm_head(hidden_ND, self.final_logits_bias)
        return logits_NV

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> Tensor:
        hidden_ND, packing = self.hidden_states(input_ids, attention_mask, decoder_input_ids)
        return packing.unpack(self.logits(hidden_ND))


def clamp_half(hidden_ND: Tensor) -> Tensor:
    """Keeps float16 hidden states finite, as the encoders were trained to expect; other dtypes pass.

    The reference clamps BART only where some value of the whole batch is infinite, which lets a row's answer depend on
    its neighbours, and costs a wait for the device. Clamping always differs from it above 64512 alone.
    """
    if hidden_ND.dtype != torch.float16:
        return hidden_ND
    limit = torch.finfo(torch.float16).max - 1000
    return hidden_ND.clamp(-limit, limit)
