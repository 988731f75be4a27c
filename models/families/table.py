"""Architecture names, as config.json spells them, to classes. A family is imported when one of its names is wanted."""

from importlib import import_module
from typing import TYPE_CHECKING

from batchloom.models.errors import UnsupportedModelError
from batchloom.models.families.config import ModelConfig

if TYPE_CHECKING:
    from batchloom.models.families.base import LoadedModel

# By model_type: how the family's classes begin, and where they are.
FAMILIES = {
    "bart": ("Bart", "batchloom.models.families.bart"),
    "blenderbot": ("Blenderbot", "batchloom.models.families.blenderbot"),
    "blenderbot-small": ("BlenderbotSmall", "batchloom.models.families.blenderbot_small"),
    "bloom": ("Bloom", "batchloom.models.families.bloom"),
}
_SPEAKING = ("ForConditionalGeneration", "ForCausalLM", "Model")
# By model_type: how the family's classes end. The first is taken where config.json names none.
HEADS = {
    "bart": (*_SPEAKING, "ForSequenceClassification", "ForQuestionAnswering"),
    "blenderbot": _SPEAKING,
    "blenderbot-small": _SPEAKING,
    "bloom": (
        "ForCausalLM",
        "Model",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
}
ARCHITECTURES = {prefix + head: module for family, (prefix, module) in FAMILIES.items() for head in HEADS[family]}


def architecture_of(config: ModelConfig, asked: str | None = None) -> str:
    """The class to load: the one asked for, else config.json's first, else the family's language model.

    model_type decides the family, as in the reference: blenderbot-90M says BlenderbotForConditionalGeneration and is a
    blenderbot-small. Raises UnsupportedModelError where the family has no such class.
    """
    prefix, _ = FAMILIES[config.model_type]
    known = [prefix + head for head in HEADS[config.model_type]]
    named = asked or next(iter(config.architectures), known[0])
    if named not in known and asked is None:
        named = prefix + _head(named)
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
    """The class of an architecture name. Raises UnsupportedModelError, listing the names that exist."""
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} is not one we have. Known: {', '.join(sorted(ARCHITECTURES))}."
        )
    found: type[LoadedModel] = getattr(import_module(ARCHITECTURES[architecture]), architecture)
    return found
