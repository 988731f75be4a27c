"""Reads the small files beside a vocabulary: special tokens, added tokens, switches and the family."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from batchloom.models.errors import TokenizerError
from batchloom.models.families.family import Family
from batchloom.models.families.table import FAMILIES

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json."""

    family: Family | None = None
    """From the class names or model_type; None where no file names one of ours."""
    add_prefix_space: bool | None = None
    """Whether a text that does not start with white space gets a leading space; None where no file says."""
    clean_up_spaces: bool = False
    """Whether decoding removes spaces before punctuation, for tokenizers other than BPE."""
    clean_up_spaces_of_bpe: bool = False
    """The same for BPE, whose tokens include their spaces."""
    split_special_tokens: bool = False
    """Whether special tokens in a text are text, such as "</s>" in a web page's."""
    special_tokens: dict[str, AddedToken | None] = field(default_factory=dict)
    """Token by role, as in ROLES; None where the file sets it to null."""
    extra_special_tokens: tuple[AddedToken, ...] = ()
    """Special tokens without a role."""
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)
    """Token by id, sorted, for tokens that the vocabulary file need not have."""


def read_settings(folder: Path) -> Settings:
    """Return the settings of a checkpoint's folder. Raises TokenizerError if a file does not hold a JSON object."""
    config = read_json(folder / "tokenizer_config.json")
    special, extra = _special_tokens(folder, config)
    return Settings(
        family=_family(config, read_json(folder / "config.json")),
        add_prefix_space=config.get("add_prefix_space"),
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces")),
        clean_up_spaces_of_bpe=bool(
            config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        ),
        split_special_tokens=bool(config.get("split_special_tokens")),
        special_tokens=special,
        extra_special_tokens=tuple(extra),
        added_tokens=_added_tokens(folder, config, {str(t): t for t in (*special.values(), *extra) if t}),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty if there is no file. Raises TokenizerError if it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"{path.name} is not JSON: {error}. Fetch it again.") from error
    except RecursionError as error:
        raise TokenizerError(f"{path.name} nests deeper than any tokenizer's. Fetch it again.") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path.name} holds a {type(found).__name__}, expected an object. Fetch it again.")
    return found


def _special_tokens(folder: Path, config: dict[str, Any]) -> tuple[dict[str, AddedToken | None], list[AddedToken]]:
    """Return tokens with a role, and those without. special_tokens_map.json counts unless there is a newer entry."""
    roles = dict(config)
    if "added_tokens_decoder" not in config:
        roles.update(read_json(folder / "special_tokens_map.json"))
    extra = roles.get("extra_special_tokens") or roles.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # names of the user's own to tokens
        extra = list(extra.values())
    # A mask written as a bare string strips the space before it: BART was trained with it in place of " word"
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
    """Parse a token: a string, to which `lstrip` applies, or an object with its own switches."""
    if isinstance(value, str):
        return AddedToken(value, lstrip=lstrip, special=bool(special), normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"expected a token as a string or as an object with 'content', found {value!r}.")
    switches = {key: bool(value.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(value["content"], special=bool(value.get("special") if special is None else special), **switches)


def _family(tokenizer_config: dict[str, Any], model_config: dict[str, Any]) -> Family | None:
    """Return the family of the first known class name, else of model_type.

    Names without a family, such as PreTrainedTokenizerFast, are passed over: the next file is asked.
    """
    for config in (tokenizer_config, model_config):
        name = str(config.get("tokenizer_class")).removesuffix("Fast")
        for family in FAMILIES.values():
            if name in family.tokenizer.class_names:
                return family
    return FAMILIES.get(str(model_config.get("model_type")))


def recognise_family(vocabulary: Mapping[str, int]) -> Family:
    """Return whose vocabulary this is, by the ids of its special tokens, where no file says so."""
    matching = [
        family
        for family in FAMILIES.values()
        if family.tokenizer.marks is not None
        and all(
            token in vocabulary and index in (None, vocabulary[token])
            for token, index in family.tokenizer.marks.items()
        )
    ]
    return max(matching, key=lambda family: len(family.tokenizer.marks or ()))
