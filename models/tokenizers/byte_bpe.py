"""Builds the byte-level BPE of three families from vocab.json and merges.txt. It encodes nothing itself."""

from collections.abc import Mapping

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as LibraryBackend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.processors import RobertaProcessing

from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers.overlay import DEFAULT_ROLES, add_blenderbot_end, add_tokens, role_content
from batchloom.models.tokenizers.settings import Family, Settings
from batchloom.models.tokenizers.vocabulary import Merges

# The split of BLOOM's tokenizer.json: unlike GPT-2's it keeps letters, digits and signs of any script together.
# It stops at white space and at the sentence marks of BLOOM's languages, and at ( | ), which the class holds too.
_BLOOM_WORD = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def build_byte_bpe(vocabulary: dict[str, int], merges: Merges, settings: Settings) -> LibraryBackend:
    """Return the library's tokenizer for a vocabulary and merges, with the family's tokens and template.

    Raises: TokenizerError where a merge or a token that the template needs is not in the vocabulary.
    """
    try:
        backend = LibraryBackend(BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises bare Exception: "Token `ab` out of vocabulary"
        raise TokenizerError(f"merges.txt and vocab.json do not fit: {error}. Take both from one place.") from error
    family = settings.family or recognise_family(vocabulary)
    prefix_space = settings.add_prefix_space
    if prefix_space is None:
        prefix_space = family is Family.BLENDERBOT
    backend.decoder = ByteLevelDecoder()
    add_tokens(backend, settings)
    _add_default_tokens(backend)
    if family is Family.BLOOM:
        words = Split(Regex(_BLOOM_WORD), behavior="isolated")
        backend.pre_tokenizer = Sequence([words, ByteLevel(prefix_space, use_regex=False)])
        backend.post_processor = ByteLevelOffsets(trim_offsets=False)
        return backend
    backend.pre_tokenizer = ByteLevel(prefix_space)
    if family is Family.BLENDERBOT:
        add_blenderbot_end(backend, settings)
    else:
        sep, cls = (_token_and_id(role, backend, settings) for role in ("sep_token", "cls_token"))
        backend.post_processor = RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix_space)
    return backend


def recognise_family(vocabulary: Mapping[str, int]) -> Family:
    """Return whose vocabulary this is, by the ids of its special tokens, where no file says so."""
    if "__unk__" in vocabulary:
        return Family.BLENDERBOT_SMALL
    if (vocabulary.get("<pad>"), vocabulary.get("<s>")) == (0, 1):
        return Family.BLENDERBOT
    if (vocabulary.get("<unk>"), vocabulary.get("<s>")) == (0, 1):
        return Family.BLOOM
    return Family.BART


def _add_default_tokens(backend: LibraryBackend) -> None:
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for content in sorted(set(DEFAULT_ROLES.values()) - known):
        if backend.token_to_id(content) is not None:
            # The mask token includes the space before it: BART was trained with it in place of " word"
            token = AddedToken(content, lstrip=content == "<mask>", normalized=False, special=True)
            backend.add_special_tokens([token])


def _token_and_id(role: str, backend: LibraryBackend, settings: Settings) -> tuple[str, int]:
    content = role_content(role, settings)
    index = None if content is None else backend.token_to_id(content)
    if content is None or index is None:
        raise TokenizerError(
            f"the {role} {content!r} is not among the {backend.get_vocab_size()} tokens of the vocabulary. "
            "Correct tokenizer_config.json or special_tokens_map.json."
        )
    return content, index
