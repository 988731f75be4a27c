"""The record of a model family: every fact about a family that code outside its own file asks for. It knows no torch.

models/families/table.py holds the records; docs/add-a-family.md walks through a new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from batchloom.models.families.config import ModelConfig


class DecoderStart(Enum):
    """What the decoder reads first, when its ids are made by shifting a sequence one to the right."""

    START_TOKEN = "start token"  # a b </s>         -> <start> a b
    LAST_TOKEN = "last token"  # a b </s> <lang>  -> <lang> a b </s>


class TokenizerFiles(Enum):
    """Which files a family's tokenizer can be read from."""

    LIBRARY = "library"  # tokenizer.json alone
    BYTE_BPE = "byte BPE"  # tokenizer.json, else byte-level BPE from vocab.json and merges.txt
    WORD_BPE = "word BPE"  # vocab.json and merges.txt, read by tokenizers/blenderbot_small.py


class Template(Enum):
    """The special tokens around a text that is built from vocab.json and merges.txt."""

    SURROUNDED = "surrounded"  # <s> a </s>, pairs <s> a </s></s> b </s>
    ENDED = "ended"  # a </s>, pairs a b </s>; also added to a tokenizer.json without a template
    BARE = "bare"  # a


FINGERPRINTED = ("added_tokens.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class TokenizerHabits:
    """What the tokenizer's files do not say."""

    class_names: tuple[str, ...]
    """Values of tokenizer_class, without "Fast", that mean this family."""
    files: TokenizerFiles = TokenizerFiles.BYTE_BPE
    marks: Mapping[str, int | None] | None = None
    """Tokens by id (None: any id) that tell this family's vocabulary where no file names a class; None: never guessed.
    The family with most marks wins, so that an empty mapping is the fallback."""
    adds_prefix_space: bool = False
    """Whether a text that starts without white space gets a space in front, where no file says."""
    word_pattern: str | None = None
    """What byte-level BPE keeps together; None: GPT-2's pattern."""
    template: Template = Template.SURROUNDED
    fingerprinted: tuple[str, ...] = (*FINGERPRINTED, "merges.txt", "vocab.json")
    """Files whose content decides token ids, so that a job's fingerprint holds their hash."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of checkpoints. Fields with a default are for encoder-decoders with learned positions."""

    model_type: str
    """config.json's model_type."""
    prefix: str
    """How class names begin: "Bart" in BartForConditionalGeneration. Files without a model_type are known by it."""
    module: str
    """The file with the classes. It is imported when one of them is wanted."""
    heads: tuple[str, ...]
    """How class names end. The first is the language model, loaded where config.json names no class."""
    config: type[ModelConfig]
    """The class of families/config.py that holds its config.json."""
    defaults: Mapping[str, Any]
    """What it means by a key that config.json leaves out (the reference's defaults)."""

    position_offset: int = 0
    """Rows of the position matrix before the first position."""
    embedding_norm: bool
    """Whether a stack normalizes its embeddings."""
    final_norm: bool
    """Whether a stack normalizes the output of its last layer."""
    shifts_input: bool = False
    """Whether missing decoder ids are made from the input; where not, they are demanded."""
    decoder_start: DecoderStart = DecoderStart.START_TOKEN
    dialogue_separator: str | None = None
    """What stood between turns in training; None: the family holds no conversations."""
    tokenizer: TokenizerHabits

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of its classes."""
        return tuple(self.prefix + head for head in self.heads)
