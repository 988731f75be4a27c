"""Logits processors ban, force or penalize tokens before the search chooses. They know no model and no search.

Every change is sparse and in place: logits are never copied as a whole. Each processor's meaning, and their order, are
those of transformers (5.23, GenerationMixin._get_logits_processor).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams, as_ids
from batchloom.models.generation.search.history import History
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.transfers import to_device

# A processor gets this rank's logits [R, V], the history, and the log-normalizer [R], which is subtracted where the
# processor acts on log-probabilities (None: it acts on logits).
Processor = Callable[[Tensor, History, Tensor | None], None]


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
        tokens_RT = history.tokens_RT[:, : history.longest]
        _ban_completions(logits_RV, history, tokens_RT, history.length_R, size, vocabulary)

    return process


def _encoder_no_repeat_ngram(size: int, vocabulary: Vocabulary) -> Processor:
    def process(logits_RV: Tensor, history: History, log_normalizer_R: Tensor | None) -> None:  # noqa: ARG001
        assert history.prompt_RS is not None
        assert history.prompt_length_R is not None
        _ban_completions(logits_RV, history, history.prompt_RS, history.prompt_length_R, size, vocabulary)

    return process


def _ban_completions(
    logits_RV: Tensor, history: History, text_RT: Tensor, length_R: Tensor, size: int, vocabulary: Vocabulary
) -> None:
    """Ban the tokens that would complete an n-gram of `text`: those that follow the row's last size - 1 tokens in it.

    All windows are compared at once: 128 rows of 64 tokens are 8,000 comparisons, cheaper than a lookup for each row.
    """
    num_windows = text_RT.shape[1] - size + 1
    if num_windows <= 0:
        return
    ends_T = torch.arange(size, size + num_windows, device=text_RT.device)
    matches_RT = ends_T <= length_R[:, None]
    suffix_start_R = history.length_R - (size - 1)
    matches_RT &= (suffix_start_R >= 0)[:, None]
    for offset in range(size - 1):
        wanted_R1 = history.tokens_RT.gather(1, (suffix_start_R + offset).clamp(min=0)[:, None])
        matches_RT &= text_RT[:, offset : offset + num_windows] == wanted_R1
    vocabulary.ban(logits_RV, text_RT[:, size - 1 : size - 1 + num_windows], matches_RT)


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
