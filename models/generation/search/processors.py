"""Logits processors ban, force or penalize tokens before the search chooses. They know no model and no search.

Every change is sparse and in place: logits are never copied as a whole. Each processor's meaning, and their order, are
those of transformers (5.23, GenerationMixin._get_logits_processor).
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams, as_ids
from batchloom.models.generation.search.history import History
from batchloom.models.generation.search.ngrams import Texts, plain_ban_completions
from batchloom.models.generation.search.vocabulary import WHOLE, Vocabulary
from batchloom.models.kernels import kernel_or
from batchloom.models.transfers import to_device

# A processor gets this rank's logits [R, V], the history, and the log-normalizer [R], which is subtracted where the
# processor acts on log-probabilities (None: it acts on logits).
Processor = Callable[[Tensor, History, Tensor | None], None]
Bans = Callable[[Tensor, Texts, Texts, int, Vocabulary], None]


def processors_of(params: GenerationParams, vocabulary: Vocabulary, device: torch.device) -> list[Processor]:
    """Return the processors that resolved params ask for, in the order of application."""

    def columns(token_ids: Sequence[int]) -> Tensor:
        return to_device(vocabulary.columns(token_ids), device)

    chain: list[Processor] = []
    for word, bias in dict(params.sequence_bias or ()).items():
        chain.append(_add_after(tuple(word), bias, vocabulary.columns(word[-1:])))
    if params.encoder_repetition_penalty != 1.0:
        assert params.encoder_repetition_penalty is not None
        chain.append(_encoder_repetition_penalty(1 / params.encoder_repetition_penalty, vocabulary))
    if params.repetition_penalty != 1.0:
        assert params.repetition_penalty is not None
        chain.append(_repetition_penalty(params.repetition_penalty, vocabulary))
    if params.no_repeat_ngram_size:
        chain.append(_no_repeat_ngram(params.no_repeat_ngram_size, vocabulary))
    if params.encoder_no_repeat_ngram_size:
        chain.append(_encoder_no_repeat_ngram(params.encoder_no_repeat_ngram_size, vocabulary))
    if params.bad_words_ids:
        ends = {(end,) for end in params.eos_token_ids}
        words = [tuple(word) for word in params.bad_words_ids if tuple(word) not in ends]
        chain.extend(_add_after(word, -torch.inf, vocabulary.columns(word[-1:])) for word in words)
    if params.eos_token_ids:
        chain.append(_min_length(columns(params.eos_token_ids)))
    if params.forced_bos_token_id is not None:
        first = columns((params.forced_bos_token_id,))
        chain.append(_forced(first, lambda history: [length == 1 for length in history.lengths]))
    if as_ids(params.forced_eos_token_id):
        chain.append(
            _forced(
                columns(as_ids(params.forced_eos_token_id)),
                lambda history: [
                    length == most - 1 for length, most in zip(history.lengths, history.max_lengths, strict=True)
                ],
            )
        )
    if params.exponential_decay_length_penalty is not None and params.eos_token_ids:
        chain.append(_exponential_decay(*params.exponential_decay_length_penalty, columns(params.eos_token_ids)))
    if params.suppress_tokens:
        chain.append(_suppress(columns(params.suppress_tokens)))
    if params.begin_suppress_tokens:
        chain.append(_begin_suppress(columns(params.begin_suppress_tokens), params.forced_bos_token_id is not None))
    return chain


def needs_prompt(params: GenerationParams) -> bool:
    """Return whether a processor reads the prompt apart from the decoder's tokens."""
    return params.encoder_repetition_penalty != 1.0 or bool(params.encoder_no_repeat_ngram_size)


def _repetition_penalty(penalty: float, vocabulary: Vocabulary) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:
        tokens_RT = _valid_tokens(history.tokens_RT[:, : history.longest], history.length_R)
        _penalize(logits_RV, tokens_RT, penalty, log_normalizer_R, vocabulary)

    return process


def _encoder_repetition_penalty(penalty: float, vocabulary: Vocabulary) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:
        assert history.prompt_RS is not None
        _penalize(logits_RV, history.prompt_RS, penalty, log_normalizer_R, vocabulary)

    return process


def _penalize(
    logits_RV: Tensor, tokens_RT: Tensor, penalty: float, log_normalizer_R: Tensor | None, vocabulary: Vocabulary
) -> None:
    """Make tokens less likely (penalty > 1) or likelier; a token that occurs twice is changed once."""
    values_RT = vocabulary.read(logits_RV, tokens_RT).float()
    if log_normalizer_R is not None:
        values_RT -= log_normalizer_R[:, None]
    values_RT = torch.where(values_RT < 0, values_RT * penalty, values_RT / penalty)
    if log_normalizer_R is not None:
        values_RT += log_normalizer_R[:, None]
    vocabulary.write(logits_RV, tokens_RT, values_RT.to(logits_RV.dtype))


def _valid_tokens(tokens_RT: Tensor, length_R: Tensor) -> Tensor:
    """Return tokens in which each row's first one replaces whatever is beyond its length."""
    is_valid_RT = torch.arange(tokens_RT.shape[1], device=tokens_RT.device) < length_R[:, None]
    return torch.where(is_valid_RT, tokens_RT, tokens_RT[:, :1])


def _no_repeat_ngram(size: int, vocabulary: Vocabulary) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        own = Texts(history.tokens_RT[:, : history.longest], history.length_R)
        _bans_on(logits_RV.device)(logits_RV, own, own, size, vocabulary)

    return process


def _encoder_no_repeat_ngram(size: int, vocabulary: Vocabulary) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        assert history.prompt_RS is not None
        assert history.prompt_length_R is not None
        own = Texts(history.tokens_RT[:, : history.longest], history.length_R)
        prompts = Texts(history.prompt_RS, history.prompt_length_R)
        _bans_on(logits_RV.device)(logits_RV, own, prompts, size, vocabulary)

    return process


@cache
def _bans_on(device: torch.device) -> Bans:
    """Return what bans n-grams: a kernel where Triton works, and plain torch elsewhere."""

    def load() -> Bans:
        from batchloom.models.generation.search.kernels.ngrams import ban_completions

        token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
        text = Texts(token_11, token_11[0] + 1)
        ban_completions(torch.zeros(1, 16, device=device), text, text, 1, WHOLE)
        return ban_completions

    plain: Bans = plain_ban_completions
    return kernel_or(plain, device, load, without="n-grams are banned by plain torch")


def _add_after(word: tuple[int, ...], bias: float, columns: list[int]) -> Processor:
    """Change a word's last token after its others. `columns`: that token's column, none where another rank has it."""
    prefix = word[:-1]

    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        start_R = history.length_R - len(prefix)
        is_match_R = start_R >= 0
        for offset, token in enumerate(prefix):
            is_match_R &= history.tokens_RT.gather(1, (start_R + offset).clamp(min=0)[:, None])[:, 0] == token
        for column in columns:
            logits_RV[:, column] += torch.zeros_like(logits_RV[:, column]).masked_fill_(is_match_R, bias)

    return process


def _min_length(columns_C: Tensor) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        both = zip(history.lengths, history.min_lengths, strict=True)
        _fill(logits_RV, [row for row, (length, least) in enumerate(both) if length < least], columns_C)

    return process


def _suppress(columns_C: Tensor) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:
        del history, log_normalizer_R
        logits_RV.index_fill_(1, columns_C, -torch.inf)

    return process


def _begin_suppress(columns_C: Tensor, has_forced_bos: bool) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        rows = []
        for row, (length, start) in enumerate(zip(history.lengths, history.start_lengths, strict=True)):
            # After a forced first token, the next one is the first that is chosen.
            begin = start + 1 if start == 1 and has_forced_bos else start
            if length == begin:
                rows.append(row)
        _fill(logits_RV, rows, columns_C)

    return process


def _fill(logits_RV: Tensor, rows: list[int], columns_C: Tensor) -> None:
    """Ban columns in some rows."""
    if len(rows) == logits_RV.shape[0]:
        logits_RV.index_fill_(1, columns_C, -torch.inf)
    elif rows:
        logits_RV[to_device(rows, logits_RV.device)[:, None], columns_C] = -torch.inf


def _forced(columns_C: Tensor, is_due: Callable[[History], list[bool]]) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:
        rows = [row for row, due in enumerate(is_due(history)) if due]
        if not rows:
            return
        rows_M = to_device(rows, logits_RV.device)
        logits_RV.index_fill_(0, rows_M, -torch.inf)
        logits_RV[rows_M[:, None], columns_C] = 0.0
        if log_normalizer_R is not None:
            log_normalizer_R.index_fill_(0, rows_M, 0.0)  # log-probability 0, exact in every dtype

    return process


def _exponential_decay(start: int, factor: float, columns_C: Tensor) -> Processor:
    """Make end tokens likelier with each token after the first `start` new ones."""

    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:
        both = zip(history.lengths, history.start_lengths, strict=True)
        excess = [length - begin - start for length, begin in both]
        if max(excess) <= 0:
            return
        raise_R = to_device([factor ** max(0, one) - 1 for one in excess], logits_RV.device, torch.float32)
        values_RC = logits_RV[:, columns_C].float()
        if log_normalizer_R is not None:
            values_RC = values_RC - log_normalizer_R[:, None]
        raised_RC = (values_RC.abs() * raise_R[:, None]).masked_fill(~values_RC.isfinite(), 0.0)
        logits_RV[:, columns_C] += raised_RC.to(logits_RV.dtype)

    return process
