"""Blenderbot: norms before each sublayer and once at the end of each stack, none on the embeddings.

Source: Roller et al., arXiv 2004.13637.
"""

from batchloom.models.families.encoder_decoder import BareModel
from batchloom.models.families.encoder_decoder_heads import ConditionalGeneration, DecoderAlone
from batchloom.models.families.stacks import NormFirstLayer


class BlenderbotModel(BareModel):
    LAYER = NormFirstLayer


class BlenderbotForConditionalGeneration(ConditionalGeneration):
    BARE = BlenderbotModel


class BlenderbotForCausalLM(DecoderAlone):
    BARE = BlenderbotModel
