"""BART: norms after the residual sums, a norm on the embeddings, positions that begin at row two.

Source: Lewis et al., arXiv 1910.13461.
"""

from batchloom.models.families.encoder_decoder import BareModel
from batchloom.models.families.encoder_decoder_heads import (
    ConditionalGeneration,
    DecoderAlone,
    QuestionAnswering,
    SequenceClassification,
)
from batchloom.models.families.stacks import NormAfterLayer


class BartModel(BareModel):
    LAYER = NormAfterLayer


class BartForConditionalGeneration(ConditionalGeneration):
    BARE = BartModel


class BartForSequenceClassification(SequenceClassification):
    BARE = BartModel


class BartForQuestionAnswering(QuestionAnswering):
    BARE = BartModel


class BartForCausalLM(DecoderAlone):
    BARE = BartModel
