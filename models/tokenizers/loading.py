"""Find a checkpoint's tokenizer files and build the tokenizer for them. It encodes nothing."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as LibraryBackend

from batchloom.models.errors import TokenizerError
from batchloom.models.families.family import Template, TokenizerFiles
from batchloom.models.tokenizers.blenderbot_small import BlenderbotSmallTokenizer
from batchloom.models.tokenizers.byte_bpe import build_byte_bpe
from batchloom.models.tokenizers.library import LibraryTokenizer
from batchloom.models.tokenizers.overlay import add_end, add_tokens, set_prefix_space
from batchloom.models.tokenizers.settings import Settings, read_settings, recognise_family
from batchloom.models.tokenizers.tokenizer import Tokenizer
from batchloom.models.tokenizers.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from batchloom.models.checkpoints.pinned import PinnedModel


def load_tokenizer(uri: "str | os.PathLike[str] | PinnedModel") -> Tokenizer:
    """Return the tokenizer of a checkpoint: a local folder, or any URI that models/checkpoints/hub.py can fetch.

    Files of `CheckpointInfo.pinned` are compared with their hashes before and after they are read.

    Raises: TokenizerError where files are missing or do not fit each other, CheckpointError where the URI cannot be
    fetched, or where a file is not the pinned one.
    """
    if isinstance(uri, str | os.PathLike) and Path(uri).is_dir():
        return _read_tokenizer(Path(uri), os.fspath(uri))
    from batchloom.models.checkpoints.hub import open_source  # a local folder needs neither fsspec nor a hub

    source = open_source(os.fspath(uri) if isinstance(uri, os.PathLike) else uri)
    source.check_small()
    tokenizer = _read_tokenizer(source.folder, source.uri)
    source.check_small()
    return tokenizer


def _read_tokenizer(folder: Path, uri: str) -> Tokenizer:
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    try:
        settings = read_settings(folder)
        named = settings.family
        if (folder / "tokenizer.json").exists() and not (named and named.tokenizer.files is TokenizerFiles.WORD_BPE):
            return LibraryTokenizer(_read_backend(folder / "tokenizer.json", settings), settings, name)
        if named and named.tokenizer.files is TokenizerFiles.LIBRARY:
            raise TokenizerError(
                f"there is no tokenizer.json, the one file that the tokenizer of {named.model_type} is read from. "
                "Save it with the reference: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        vocabulary, merges = read_vocabulary(folder)
        if (named or recognise_family(vocabulary)).tokenizer.files is TokenizerFiles.WORD_BPE:
            if settings.split_special_tokens:
                raise TokenizerError(
                    "split_special_tokens = true is not supported for this kind of tokenizer. Set it to false in "
                    "tokenizer_config.json."
                )
            return BlenderbotSmallTokenizer(vocabulary, merges, settings, name)
        return LibraryTokenizer(build_byte_bpe(vocabulary, merges, settings), settings, name)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise TokenizerError(
            f"{folder}: the tokenizer's files hold what no tokenizer does ({type(error).__name__}: {error}). Fetch "
            "them again."
        ) from error


def _read_backend(path: Path, settings: Settings) -> LibraryBackend:
    """Return the backend that tokenizer.json describes, modified by the settings of the files beside it."""
    try:
        backend = LibraryBackend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise TokenizerError(f"tokenizer.json is not readable: {error}. Fetch it again.") from error
    add_tokens(backend, settings)
    if settings.add_prefix_space is not None:
        set_prefix_space(backend, settings.add_prefix_space)
    family = settings.family or recognise_family(backend.get_vocab())
    if family.tokenizer.template is Template.ENDED and not backend.num_special_tokens_to_add(is_pair=True):
        add_end(backend, settings)
    return backend
