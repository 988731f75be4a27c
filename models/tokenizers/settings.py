"""The small files beside a vocabulary: special tokens, added tokens and switches. They know no text."""

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from batchloom.models.errors import TokenizerError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Family(Enum):
    """Whose habits fill in what the files do not say."""

    BART = "bart"
    BLENDERBOT = "blenderbot"
    BLENDERBOT_SMALL = "blenderbot_small"
    BLOOM = "bloom"


# Roberta: transformers 5 saves BART's tokenizer under this name. Names without a family, such as
# PreTrainedTokenizerFast, are absent on purpose: the next file is asked.
_FAMILY_OF_CLASS = {
    "BartTokenizer": Family.BART,
    "RobertaTokenizer": Family.BART,
    "BlenderbotTokenizer": Family.BLENDERBOT,
    "BlenderbotSmallTokenizer": Family.BLENDERBOT_SMALL,
    "BloomTokenizer": Family.BLOOM,
}
_FAMILY_OF_MODEL_TYPE = {
    "bart": Family.BART,
    "blenderbot": Family.BLENDERBOT,
    "blenderbot-small": Family.BLENDERBOT_SMALL,
    "bloom": Family.BLOOM,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json say."""

    family: Family | None = None
    """From the class names; None where no file names one of ours."""
    add_prefix_space: bool | None = None
    """Whether a text that does not start with white space gets a space in front; None where no file says."""
    clean_up_spaces: bool = False
    """Whether decoded text loses the space before punctuation, where the tokenizer is of a kind that needs it."""
    clean_up_spaces_of_bpe: bool = False
    """The same for BPE, which carries its own spaces."""
    special_tokens: dict[str, AddedToken | None] = field(default_factory=dict)
    """Role, as in ROLES, to token; None where the file says null."""
    extra_special_tokens: tuple[AddedToken, ...] = ()
    """Special tokens without a role."""
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)
    """Token id to token, for tokens that the vocabulary file need not have; sorted by id."""


def read_settings(folder: Path) -> Settings:
    """Return the settings of a checkpoint's folder. Errors: TokenizerError where a file does not hold an object."""
    config = read_json(folder / "tokenizer_config.json")
    special, extra = _special_tokens(folder, config)
    return Settings(
        family=_family(config, read_json(folder / "config.json")),
        add_prefix_space=config.get("add_prefix_space"),
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces")),
        clean_up_spaces_of_bpe=bool(
            config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        ),
        special_tokens=special,
        extra_special_tokens=tuple(extra),
        added_tokens=_added_tokens(folder, config, {str(t): t for t in (*special.values(), *extra) if t}),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"{path.name} is not JSON: {error}. Fetch it again.") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path.name} holds a {type(found).__name__}, expected an object. Fetch it again.")
    return found


def _special_tokens(folder: Path, config: dict[str, Any]) -> tuple[dict[str, AddedToken | None], list[AddedToken]]:
    """Tokens with a role, and those without. The older special_tokens_map.json counts where nothing newer is."""
    roles = dict(config)
    if "added_tokens_decoder" not in config:
        roles.update(read_json(folder / "special_tokens_map.json"))
    extra = roles.get("extra_special_tokens") or roles.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # names of the user's own to tokens
        extra = list(extra.values())
    # A mask written as a bare string swallows the space before it: BART was trained with it in place of " word"
    special = {
        role: None if roles[role] is None else _token(roles[role], special=True, lstrip=role == "mask_token")
        for role in ROLES
        if role in roles
    }
    return special, [_token(value, special=True) for value in extra]


def _added_tokens(folder: Path, config: dict[str, Any], special: dict[str, AddedToken]) -> dict[int, AddedToken]:
    if "added_tokens_decoder" in config:
        added = {int(index): _token(value) for index, value in config["added_tokens_decoder"].items()}
    else:
        listed = read_json(folder / "added_tokens.json")
        added = {int(index): special.get(content, _token(content)) for content, index in listed.items()}
    return dict(sorted(added.items()))


def _token(value: Any, special: bool | None = None, lstrip: bool = False) -> AddedToken:
    """A token is written as a string, or as an object with its switches; `lstrip` is for the string."""
    if isinstance(value, str):
        return AddedToken(value, lstrip=lstrip, special=bool(special), normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"expected a token as a string or as an object with 'content', found {value!r}.")
    switches = {key: bool(value.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(value["content"], special=bool(value.get("special") if special is None else special), **switches)


def _family(tokenizer_config: dict[str, Any], model_config: dict[str, Any]) -> Family | None:
    for config in (tokenizer_config, model_config):
        family = _FAMILY_OF_CLASS.get(str(config.get("tokenizer_class")).removesuffix("Fast"))
        if family is not None:
            return family
    return _FAMILY_OF_MODEL_TYPE.get(str(model_config.get("model_type")))
