"""The families that there are, one record each, and architecture names to classes. It imports no torch.

A family's file is imported when one of its classes is wanted.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from batchloom.models.errors import UnsupportedModelError
from batchloom.models.families.config import BloomConfig, EncoderDecoderConfig, ModelConfig
from batchloom.models.families.family import (
    FINGERPRINTED,
    DecoderStart,
    Family,
    Template,
    TokenizerFiles,
    TokenizerHabits,
)

if TYPE_CHECKING:
    from batchloom.models.families.base import LoadedModel

_SPEAKING = ("ForConditionalGeneration", "ForCausalLM", "Model")
_CLASSIFYING = ("ForSequenceClassification", "ForQuestionAnswering")
_BART_SIZES = {
    "vocab_size": 50265, "d_model": 1024, "max_position_embeddings": 1024,
    "encoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096,
    "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
}  # fmt: skip
_BLENDERBOT_SIZES = {
    "vocab_size": 8008, "d_model": 2560, "max_position_embeddings": 128,
    "encoder_layers": 2, "encoder_attention_heads": 32, "encoder_ffn_dim": 10240,
    "decoder_layers": 24, "decoder_attention_heads": 32, "decoder_ffn_dim": 10240,
}  # fmt: skip
_BLENDERBOT_SMALL_SIZES = {
    "vocab_size": 50265, "d_model": 512, "max_position_embeddings": 512,
    "encoder_layers": 8, "encoder_attention_heads": 16, "encoder_ffn_dim": 2048,
    "decoder_layers": 8, "decoder_attention_heads": 16, "decoder_ffn_dim": 2048,
}  # fmt: skip
_BLOOM_DEFAULTS = {
    "vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BART_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_BLENDERBOT_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

BART = Family(
    model_type="bart",
    prefix="Bart",
    module="batchloom.models.families.bart",
    heads=_SPEAKING + _CLASSIFYING,
    config=EncoderDecoderConfig,
    defaults=_BART_SIZES | _BART_IDS | {"decoder_start_token_id": 2, "num_labels": 3},
    position_offset=2,
    embedding_norm=True,
    final_norm=False,
    shifts_input=True,
    # Roberta: transformers 5 saves BART's tokenizer under this name
    tokenizer=TokenizerHabits(class_names=("BartTokenizer", "RobertaTokenizer"), marks={}),
)
MBART = Family(
    model_type="mbart",
    prefix="MBart",
    module="batchloom.models.families.mbart",
    heads=_SPEAKING + _CLASSIFYING,
    config=EncoderDecoderConfig,
    defaults=_BART_SIZES | _BART_IDS,
    position_offset=2,
    embedding_norm=True,
    final_norm=True,
    shifts_input=True,
    decoder_start=DecoderStart.LAST_TOKEN,  # the language code, which ends the texts of mbart-large-cc25
    tokenizer=TokenizerHabits(
        class_names=("MBartTokenizer", "MBart50Tokenizer"), files=TokenizerFiles.LIBRARY, fingerprinted=FINGERPRINTED
    ),
)
BLENDERBOT = Family(
    model_type="blenderbot",
    prefix="Blenderbot",
    module="batchloom.models.families.blenderbot",
    heads=_SPEAKING,
    config=EncoderDecoderConfig,
    defaults=_BLENDERBOT_SIZES | _BLENDERBOT_IDS,
    embedding_norm=False,
    final_norm=True,
    dialogue_separator="  ",
    tokenizer=TokenizerHabits(
        class_names=("BlenderbotTokenizer",),
        marks={"<pad>": 0, "<s>": 1},
        adds_prefix_space=True,
        template=Template.ENDED,
    ),
)
BLENDERBOT_SMALL = Family(
    model_type="blenderbot-small",
    prefix="BlenderbotSmall",
    module="batchloom.models.families.blenderbot_small",
    heads=_SPEAKING,
    config=EncoderDecoderConfig,
    defaults=_BLENDERBOT_SMALL_SIZES | _BLENDERBOT_IDS,
    embedding_norm=True,
    final_norm=False,
    # Its tokenizer drops spaces, so two of them would run the turns together; a line end becomes a token, __newln__.
    dialogue_separator="\n",
    tokenizer=TokenizerHabits(
        class_names=("BlenderbotSmallTokenizer",), marks={"__unk__": None}, files=TokenizerFiles.WORD_BPE
    ),
)
BLOOM = Family(
    model_type="bloom",
    prefix="Bloom",
    module="batchloom.models.families.bloom",
    heads=("ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    config=BloomConfig,
    defaults=_BLOOM_DEFAULTS,
    embedding_norm=True,
    final_norm=True,
    tokenizer=TokenizerHabits(
        class_names=("BloomTokenizer",),
        marks={"<unk>": 0, "<s>": 1},
        # That of its tokenizer.json: unlike GPT-2's it keeps letters, digits and signs of any script together. It stops
        # at white space and at the sentence marks of BLOOM's languages, and at ( | ), which the class holds too.
        word_pattern=" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
        template=Template.BARE,
    ),
)
FAMILIES = {family.model_type: family for family in (BART, MBART, BLENDERBOT, BLENDERBOT_SMALL, BLOOM)}


def family_of(config: ModelConfig) -> Family:
    """Return the record of a configuration's family."""
    return FAMILIES[config.model_type]


def architectures(head: str = "") -> list[str]:
    """Return all architecture names, or those that end in a head."""
    return [name for family in FAMILIES.values() for name in family.architectures if name.endswith(head)]


def architecture_of(config: ModelConfig, asked: str | None = None) -> str:
    """Return the class to load: the one asked for, else config.json's first, else the family's language model.

    model_type decides the family, as in the reference: blenderbot-90M says BlenderbotForConditionalGeneration and is a
    blenderbot-small. Raises UnsupportedModelError where the family has no such class.
    """
    family = family_of(config)
    known = family.architectures
    named = asked or next(iter(config.architectures), known[0])
    if named not in known and asked is None:
        named = family.prefix + _head(named)
    if named not in known:
        raise UnsupportedModelError(
            f"architecture {asked or config.architectures[0]!r} is not one that a {config.model_type} checkpoint "
            f"can be loaded as. Use one of: {', '.join(known)}."
        )
    return named


def _head(architecture: str) -> str:
    """BlenderbotForConditionalGeneration -> ForConditionalGeneration, BartModel -> Model."""
    return "For" + architecture.split("For", 1)[1] if "For" in architecture else "Model"


def model_class(architecture: str) -> "type[LoadedModel]":
    """Return the class of an architecture name. Raises UnsupportedModelError, listing the names that exist."""
    for family in FAMILIES.values():
        if architecture in family.architectures:
            found: type[LoadedModel] = getattr(import_module(family.module), architecture)
            return found
    raise UnsupportedModelError(
        f"architecture {architecture!r} is not one we have. Known: {', '.join(sorted(architectures()))}."
    )
