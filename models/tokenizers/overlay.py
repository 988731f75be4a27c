"""Apply a checkpoint's tokenizer settings to a backend of the tokenizers library. It reads no files."""

import json
from typing import Any

from tokenizers import Tokenizer as LibraryBackend
from tokenizers.processors import TemplateProcessing

from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers.settings import Settings

DEFAULT_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
"""The special tokens of BART, mBART, Blenderbot and BLOOM; a file that sets others takes precedence."""


def role_content(role: str, settings: Settings) -> str | None:
    """Return the token of a role, whether the vocabulary has it or not; None where a file sets it to null."""
    token = settings.special_tokens.get(role)
    if token is None:
        return None if role in settings.special_tokens else DEFAULT_ROLES[role]
    return token.content


def add_tokens(backend: LibraryBackend, settings: Settings) -> None:
    """Add the tokens that have an id in any file, and mark the special ones.

    A special token without an id in any file is left out. transformers assigns it the next free id, which the model's
    embedding does not have (Blenderbot's <mask> becomes 8008 of 8008).

    Raises: TokenizerError where an added token's id leaves a gap.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in settings.added_tokens.items():
        if token.content in known:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != index:
            raise TokenizerError(
                f"the added token {token.content!r} has id {index} in its file, but the next free one is "
                f"{backend.token_to_id(token.content)}. Ids must follow the vocabulary without a hole."
            )
    special = [*settings.special_tokens.values(), *settings.extra_special_tokens]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens(
        [t for t in special if t and t.content not in known and backend.token_to_id(t.content) is not None]
    )


def set_prefix_space(backend: LibraryBackend, add_prefix_space: bool) -> None:
    """Set whether texts that start without white space get a leading space."""
    backend.pre_tokenizer = _with_prefix_space(backend.pre_tokenizer, add_prefix_space)
    backend.post_processor = _with_prefix_space(backend.post_processor, add_prefix_space)  # trims offsets by it


def _with_prefix_space(part: Any, add_prefix_space: bool) -> Any:
    """Set it in the component's JSON: nested components are not accessible in every version of the library."""
    if part is None:
        return None
    state = json.loads(part.__getstate__())
    for nested in (state, *state.get("pretokenizers", ()), *state.get("processors", ())):
        if "add_prefix_space" in nested:
            nested["add_prefix_space"] = add_prefix_space
    part.__setstate__(json.dumps(state).encode())
    return part


def add_end(backend: LibraryBackend, settings: Settings) -> None:
    """Append the end token to a text and to a pair: `a </s>`, `a b </s>`.

    Blenderbot was never trained on an input without it. transformers 4 leaves it out after pairs, for which it has no
    template, and 5 also after single texts where it built the tokenizer itself.

    Raises: TokenizerError where the vocabulary has no end token.
    """
    end = role_content("eos_token", settings)
    end_id = None if end is None else backend.token_to_id(end)
    if end_id is None:
        raise TokenizerError(f"the vocabulary has no end token {end!r}, which must stand after each text.")
    backend.post_processor = TemplateProcessing(
        single=f"$A:0 {end}:0", pair=f"$A:0 $B:1 {end}:1", special_tokens=[(end, end_id)]
    )
