"""Architecture names, as config.json spells them, to classes. A family is imported when one of its names is wanted."""

from importlib import import_module
from typing import TYPE_CHECKING

from models.errors import UnsupportedModelError

if TYPE_CHECKING:
    from models.families.base import LoadedModel

FAMILY_MODULES = {
    "Bart": "models.families.bart",
    "Blenderbot": "models.families.blenderbot",
    "BlenderbotSmall": "models.families.blenderbot_small",
    "Bloom": "models.families.bloom",
}
_SPEAKING = ("Model", "ForConditionalGeneration", "ForCausalLM")
HEADS = {
    "Bart": (*_SPEAKING, "ForSequenceClassification", "ForQuestionAnswering"),
    "Blenderbot": _SPEAKING,
    "BlenderbotSmall": _SPEAKING,
    "Bloom": (
        "Model",
        "ForCausalLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
}
ARCHITECTURES = {family + head: FAMILY_MODULES[family] for family, heads in HEADS.items() for head in heads}


def model_class(architecture: str) -> "type[LoadedModel]":
    """The class of an architecture name. Raises UnsupportedModelError, listing the names that exist."""
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} is not one we have. Known: {', '.join(sorted(ARCHITECTURES))}."
        )
    found: type[LoadedModel] = getattr(import_module(ARCHITECTURES[architecture]), architecture)
    return found
