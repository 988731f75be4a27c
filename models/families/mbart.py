"""mBART: norms before each sublayer, on the embeddings and at the end of each stack; positions begin at row two.

Source: Liu et al., arXiv 2001.08210; Tang et al., arXiv 2008.00401, for mBART-50.
"""

from batchloom.models.families.encoder_decoder import BareModel
from batchloom.models.families.encoder_decoder_heads import (
    ConditionalGeneration,
    DecoderAlone,
    QuestionAnswering,
    SequenceClassification,
)
from batchloom.models.families.stacks import NormFirstLayer


class MBartModel(BareModel):
    LAYER = NormFirstLayer


class MBartForConditionalGeneration(ConditionalGeneration):
    BARE = MBartModel


class MBartForSequenceClassification(SequenceClassification):
    BARE = MBartModel


class MBartForQuestionAnswering(QuestionAnswering):
    BARE = MBartModel


class MBartForCausalLM(DecoderAlone):
    BARE = MBartModel
