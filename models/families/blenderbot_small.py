"""BlenderbotSmall: norms after the residual sums; the decoder normalizes its embeddings before it adds positions.

The encoder adds positions first. Source: Roller et al., arXiv 2004.13637, the 90M model.
"""

from dataclasses import replace

from torch import Tensor

from batchloom.models.families.config import EncoderDecoderConfig
from batchloom.models.families.encoder_decoder import BareModel
from batchloom.models.families.encoder_decoder_heads import ConditionalGeneration, DecoderAlone
from batchloom.models.families.stacks import DecoderStack, Layer, NormAfterLayer
from batchloom.models.ranks.group import TensorParallel


class BlenderbotSmallDecoder(DecoderStack):
    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel, layer: type[Layer], crosses: bool) -> None:
        # No scale, whatever scale_embedding says: transformers 5.23, our reference, dropped it here (4.x and ParlAI
        # have it). A norm follows at once, so that only its epsilon notices: 4e-4 in the logits of the parity test.
        super().__init__(replace(config, scale_embedding=False), group, layer, crosses)

    def embed(self, input_ids_N: Tensor, positions_N: Tensor) -> Tensor:
        normed_ND: Tensor = self.layernorm_embedding(self.embed_tokens(input_ids_N))
        return normed_ND + self.embed_positions(positions_N)


class BlenderbotSmallModel(BareModel):
    LAYER = NormAfterLayer
    DECODER = BlenderbotSmallDecoder


class BlenderbotSmallForConditionalGeneration(ConditionalGeneration):
    BARE = BlenderbotSmallModel


class BlenderbotSmallForCausalLM(DecoderAlone):
    BARE = BlenderbotSmallModel
