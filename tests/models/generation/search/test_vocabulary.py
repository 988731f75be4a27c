"""A vocabulary divided over ranks gives what the whole one does: largest logits, normalizers, what is drawn from."""

import threading
from dataclasses import dataclass, field

import pytest
import torch

from batchloom.models import GenerationParams
from batchloom.models.generation.requests import Request
from batchloom.models.generation.search.history import History
from batchloom.models.generation.search.processors import processors_of
from batchloom.models.generation.search.vocabulary import WHOLE, DividedVocabulary
from batchloom.models.generation.search.warpers import warp

SIZES = [2, 3, 4]


@dataclass
class Meeting:
    """Where threads that stand for ranks lay down their tensors."""

    size: int
    laid: dict = field(default_factory=dict)
    gathered: list = field(default_factory=list)

    def __post_init__(self):
        self.barrier = threading.Barrier(self.size)


@dataclass
class ThreadGroup:
    rank: int
    meeting: Meeting

    @property
    def size(self):
        return self.meeting.size

    def all_gather(self, tensor):
        together = torch.cat(self._meet(tensor), dim=-1)
        if self.rank == 0:
            self.meeting.gathered.append(together.shape[-1])
        return together

    def all_reduce(self, tensor):
        return torch.stack(self._meet(tensor)).sum(0)

    def _meet(self, tensor):
        self.meeting.laid[self.rank] = tensor
        self.meeting.barrier.wait(10)
        tensors = [self.meeting.laid[rank] for rank in range(self.size)]
        self.meeting.barrier.wait(10)
        return tensors


def on_ranks(size, logits_RV, work):
    """work(vocabulary, this rank's columns) on each rank, and how many columns were gathered each time."""
    meeting, found = Meeting(size), {}
    vocab_size = logits_RV.shape[1]
    width = -(-vocab_size // size)

    def one(rank):
        vocabulary = DividedVocabulary(vocab_size, ThreadGroup(rank, meeting))
        columns_RV = logits_RV[:, vocabulary.own].clone()
        padding_RV = columns_RV.new_full((len(columns_RV), width - columns_RV.shape[1]), -torch.inf)
        found[rank] = work(vocabulary, torch.cat((columns_RV, padding_RV), dim=1))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)], meeting.gathered


def noise(num_rows, vocab_size):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("vocab_size", "num"), [(5, 1), (5, 8), (83, 6), (5003, 1), (5003, 12)])
def test_the_best_few_are_those_of_one_rank(size, vocab_size, num):
    """Five tokens on four ranks: the last rank has none. Twelve of 5003: by maxima of tiles."""
    logits_RV = noise(7, vocab_size)
    value_RC, token_RC = WHOLE.best(logits_RV, num)
    found, gathered = on_ranks(size, logits_RV, lambda vocabulary, columns: vocabulary.best(columns, num))
    for values, tokens in found:
        assert torch.equal(values, value_RC)
        assert torch.equal(tokens, token_RC)
    assert max(gathered) <= size * num


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_logits_the_lowest_token_wins(size):
    logits_RV = torch.zeros(2, 83)
    logits_RV[1, [70, 11, 40]] = 1.0
    found, _ = on_ranks(size, logits_RV, lambda vocabulary, columns: vocabulary.best(columns, 1))
    for _, tokens in found:
        assert tokens.flatten().tolist() == [0, 11] == WHOLE.best(logits_RV, 1)[1].flatten().tolist()


@pytest.mark.parametrize("size", SIZES)
def test_normalizers_are_those_of_one_rank_also_where_a_rank_has_nothing_left(size):
    logits_RV = noise(7, 83)
    logits_RV[3, :50] = -torch.inf
    found, _ = on_ranks(size, logits_RV, lambda vocabulary, columns: vocabulary.log_normalizer(columns))
    for normalizer_R in found:
        torch.testing.assert_close(normalizer_R, WHOLE.log_normalizer(logits_RV), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vocab_size", [5, 83])
def test_the_best_and_the_normalizer_together_are_those_of_one_rank(size, vocab_size):
    """In one gathering of three numbers a rank."""
    logits_RV = noise(7, vocab_size)
    logits_RV[3, 1:] = -torch.inf
    logits_RV[4] = -torch.inf
    logits_RV[5] = 1.0
    logits_RV[6, 4] = torch.nan
    value_R, token_R, normalizer_R = WHOLE.best_and_normalizer(logits_RV)
    assert token_R[3:6].tolist() == [0, 0, 0]
    found, gathered = on_ranks(size, logits_RV, lambda vocabulary, columns: vocabulary.best_and_normalizer(columns))
    assert gathered == [size]
    for values, tokens, normalizers in found:
        assert torch.equal(values[:6], value_R[:6])
        assert torch.equal(tokens[:6], token_R[:6])
        assert normalizers[6].isnan()
        torch.testing.assert_close(normalizers[:6], normalizer_R[:6], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_found_wherever_they_lie(size):
    logits_RV = noise(2, 83)
    logits_RV[0, 82] = -torch.inf
    token_RC = torch.tensor([[0, 82, 41], [50, 7, 7]])
    for value_RC in on_ranks(size, logits_RV, lambda vocabulary, columns: vocabulary.find(columns, token_RC))[0]:
        assert torch.equal(value_RC, logits_RV.gather(1, token_RC))


OPTIONS = {
    "repetition": {"repetition_penalty": 1.7},
    "of the prompt": {"encoder_repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[7], [80], [9, 30], [9, 81]]},
    "biases": {"sequence_bias": [[[7], 2.0], [[80], -3.0], [[9, 30], 4.0], [[9, 81], -1.5]]},
    "least length": {"min_new_tokens": 10, "eos_token_id": [2, 82]},
    "forced first": {"forced_bos_token_id": 60},
    "forced last": {"forced_eos_token_id": [2, 41], "max_new_tokens": 5},
    "decay": {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": [2, 82]},
    "suppressed": {"suppress_tokens": [3, 44, 81]},
    "suppressed first": {"begin_suppress_tokens": [3, 44, 81]},
}


def history_of(params, num_new):
    """Two rows after `num_new` tokens, in which pairs come again."""
    history = History(torch.device("cpu"), keeps_prompts=True)
    prompts = [[9, 30, 9, 81, 2], [60, 7, 9, 2]]
    history.extend([Request(row, prompt, params) for row, prompt in enumerate(prompts)])
    for step in range(num_new):
        token_R = torch.tensor([[9, 60], [81, 7], [44, 82], [9, 60]][step])
        history.append(token_R, torch.zeros(2))
    return history


@pytest.mark.parametrize("num_new", [0, 4])
@pytest.mark.parametrize("in_log_probs", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_change_each_part_as_they_change_the_whole(options, in_log_probs, num_new):
    params = GenerationParams(**{"eos_token_id": 2, "decoder_start_token_id": 5, **options}).resolve({})

    def process(vocabulary, logits_RV):
        history = history_of(params, num_new)
        normalizer_R = vocabulary.log_normalizer(logits_RV) if in_log_probs else None
        for processor in processors_of(params, vocabulary, logits_RV.device):
            processor(logits_RV, history, normalizer_R)
        return vocabulary.whole(logits_RV)

    logits_RV = noise(2, 83)
    expected_RV = process(WHOLE, logits_RV.clone())
    for changed_RV in on_ranks(3, logits_RV, process)[0]:
        torch.testing.assert_close(changed_RV, expected_RV, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "gathers_all"),
    [
        ({"top_k": 50}, False),
        ({"top_k": 0, "top_p": 0.5}, False),
        ({"top_k": 0, "top_p": 0.999}, True),  # beyond the tokens that top_p looks at first
        ({"top_k": 0, "typical_p": 0.5}, True),
        ({"top_k": 0}, True),
    ],
    ids=str,
)
def test_ranks_draw_from_what_one_rank_draws_from(options, gathers_all):
    params = GenerationParams(do_sample=True, **options).resolve({})
    logits_RV = noise(3, 9001)
    expected = warp(logits_RV, params)
    found, gathered = on_ranks(2, logits_RV, lambda vocabulary, columns: warp(columns, params, vocabulary))
    for distribution in found:
        assert torch.equal(distribution.token_RC, expected.token_RC)
        torch.testing.assert_close(distribution.log_prob_RC.exp(), expected.log_prob_RC.exp(), atol=2e-5, rtol=0)
    assert (max(gathered) >= 9001) is gathers_all
