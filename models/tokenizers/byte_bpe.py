"""Builds the byte-level BPE from vocab.json and merges.txt. It encodes nothing itself."""

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as LibraryBackend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.processors import RobertaProcessing

from batchloom.models.errors import TokenizerError
from batchloom.models.families.family import Template
from batchloom.models.tokenizers.overlay import DEFAULT_ROLES, add_end, add_tokens, role_content
from batchloom.models.tokenizers.settings import Settings, recognise_family
from batchloom.models.tokenizers.vocabulary import Merges


def build_byte_bpe(vocabulary: dict[str, int], merges: Merges, settings: Settings) -> LibraryBackend:
    """Return the library's tokenizer for a vocabulary and merges, with the family's tokens and template.

    Raises: TokenizerError where a merge or a token that the template needs is not in the vocabulary.
    """
    try:
        backend = LibraryBackend(BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises bare Exception: "Token `ab` out of vocabulary"
        raise TokenizerError(f"merges.txt and vocab.json do not fit: {error}. Take both from one place.") from error
    habits = (settings.family or recognise_family(vocabulary)).tokenizer
    prefix_space = settings.add_prefix_space
    if prefix_space is None:
        prefix_space = habits.adds_prefix_space
    backend.decoder = ByteLevelDecoder()
    add_tokens(backend, settings)
    _add_default_tokens(backend)
    if habits.word_pattern is None:
        backend.pre_tokenizer = ByteLevel(prefix_space)
    else:
        words = Split(Regex(habits.word_pattern), behavior="isolated")
        backend.pre_tokenizer = Sequence([words, ByteLevel(prefix_space, use_regex=False)])
    if habits.template is Template.BARE:
        backend.post_processor = ByteLevelOffsets(trim_offsets=False)
    elif habits.template is Template.ENDED:
        add_end(backend, settings)
    else:
        sep, cls = (_token_and_id(role, backend, settings) for role in ("sep_token", "cls_token"))
        backend.post_processor = RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix_space)
    return backend


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
