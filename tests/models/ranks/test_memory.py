"""One rank of several runs out of memory: all go back together, and the answers stay the same."""

import logging

import pytest
import torch
import transformers

from batchloom.models import Engine, GenerationParams, SinglePass, load_model
from batchloom.models.generation import runner
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from batchloom.models.layers.linear import RowLinear

SIZES = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 4, "num_labels": 3}
PROMPTS = [[5, 9, 14, 33, 2], [7, 2], [60, 61, 82, 80, 4, 4, 17, 2]]
SEARCHES = [
    GenerationParams(num_beams=1, do_sample=False, max_new_tokens=9),
    GenerationParams(num_beams=3, max_new_tokens=9),
]
# Once, in whichever follower comes to it first: before the {number}th sum of this rank with the others, or
# before it gives its beams their new order, which is after the last.
IN_THE_MIDDLE = """
import os
from batchloom.models.layers.linear import RowLinear as owner
name, number = "forward", {number}
"""
AT_THE_END = """
import os
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool as owner
name, number = "reorder", 3
"""
# As on GPUs: backend_of looks at the device.
IN_BLOCKS = """
from batchloom.models.generation import runner
from batchloom.models.generation.memory.gpu.backend import PagedBackend
runner.backend_of = PagedBackend
"""
RAISES_ONCE = """
plain, calls = getattr(owner, name), iter(range(1 << 60))
def patched(*arguments):
    if next(calls) == number:
        try:
            os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return plain(*arguments)
        raise MemoryError("as the test wants")
    return plain(*arguments)
setattr(owner, name, patched)
"""


def checkpoint(folder, architecture):
    torch.manual_seed(0)
    reference = getattr(transformers, architecture)(transformers.BloomConfig(**SIZES))
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    reference.save_pretrained(folder / architecture)
    return str(folder / architecture)


def tokens(outputs):
    return [[(one.token_ids, one.finish_reason) for one in output.outputs] for output in outputs]


def in_the_middle(number):
    return IN_THE_MIDDLE.format(number=number)


@pytest.mark.parametrize(
    ("place", "size"),
    [
        pytest.param(in_the_middle(2), 2, id="prompts"),
        pytest.param(in_the_middle(17), 2, id="a step"),
        pytest.param(in_the_middle(17), 4, id="a step of four", marks=pytest.mark.slow),
        pytest.param(AT_THE_END, 2, id="after a step's last sum"),
    ],
)
def test_an_engine_starts_again_with_half_of_it(tmp_path, in_followers, caplog, place, size):
    folder, marker = checkpoint(tmp_path, "BloomForCausalLM"), tmp_path / "raised"
    in_followers(place + RAISES_ONCE.format(marker=str(marker)))
    alone, shared = Engine(load_model(folder)), Engine(load_model(folder, tensor_parallel=size))
    with caplog.at_level(logging.WARNING):
        for params in SEARCHES:
            assert tokens(shared.generate(PROMPTS, params)) == tokens(alone.generate(PROMPTS, params))
    assert marker.exists()
    assert "out of memory with 3 requests" in caplog.text
    assert f"of {size} ran out of memory: as the test wants" in caplog.text
    shared.model.group.followers.close()


def test_ranks_that_decode_as_on_gpus_start_again_as_well(tmp_path, in_followers, monkeypatch, caplog):
    folder, marker = checkpoint(tmp_path, "BloomForCausalLM"), tmp_path / "raised"
    in_followers(IN_BLOCKS + in_the_middle(17) + RAISES_ONCE.format(marker=str(marker)))
    alone = [tokens(Engine(load_model(folder)).generate(PROMPTS, params)) for params in SEARCHES]
    monkeypatch.setattr(runner, "backend_of", PagedBackend)
    shared = Engine(load_model(folder, tensor_parallel=2))
    with caplog.at_level(logging.WARNING):
        assert [tokens(shared.generate(PROMPTS, params)) for params in SEARCHES] == alone
    assert marker.exists()
    assert "out of memory with 3 requests" in caplog.text
    shared.model.group.followers.close()


@pytest.fixture
def raises_on_leader(monkeypatch):
    """raises_on_leader(number): want of memory before the number-th sum from now on, once."""
    plain, calls = RowLinear.forward, []

    def prepare(number):
        def forward(self, hidden_NF):
            calls.append(None)
            if len(calls) == number:
                raise torch.OutOfMemoryError("as the test wants")
            return plain(self, hidden_NF)

        monkeypatch.setattr(RowLinear, "forward", forward)

    return prepare


def test_the_leader_can_be_the_one(tmp_path, raises_on_leader):
    folder = checkpoint(tmp_path, "BloomForCausalLM")
    expected = Engine(load_model(folder)).generate(PROMPTS, SEARCHES[0])
    model = load_model(folder, tensor_parallel=2)
    raises_on_leader(15)
    assert tokens(Engine(model).generate(PROMPTS, SEARCHES[0])) == tokens(expected)
    model.group.followers.close()


def test_the_leader_can_leave_while_the_others_wait_for_its_text(tmp_path):
    """Stop strings: the others get a call to meet where they wait for a text."""
    folder = checkpoint(tmp_path, "BloomForCausalLM")
    params = GenerationParams(num_beams=1, max_new_tokens=9, stop_strings=("<7>",))
    calls = []

    def text(token_ids):
        calls.append(token_ids)
        if len(calls) == 4:
            raise MemoryError("as the test wants")
        return "".join(f"<{token}>" for token in token_ids)

    model = load_model(folder, tensor_parallel=2)
    found = Engine(model, stop_text=text).generate(PROMPTS, params)
    assert tokens(found) == tokens(Engine(load_model(folder), stop_text=text).generate(PROMPTS, params))
    model.group.followers.close()


def test_single_passes_begin_again_with_half_the_budget(tmp_path, in_followers):
    folder, marker = checkpoint(tmp_path, "BloomForSequenceClassification"), tmp_path / "raised"
    in_followers(in_the_middle(1) + RAISES_ONCE.format(marker=str(marker)))
    expected = SinglePass(load_model(folder)).classify(PROMPTS)
    shared = SinglePass(load_model(folder, tensor_parallel=2), max_batch_tokens=64)
    torch.testing.assert_close(shared.classify(PROMPTS), expected, atol=1e-4, rtol=1e-4)
    assert shared.max_batch_tokens == 7  # of 15 tokens together
    shared.model.group.followers.close()


ALWAYS_AT_EIGHT = """
from batchloom.models.layers.linear import RowLinear
plain = RowLinear.forward
def patched(self, hidden_NF):
    if len(hidden_NF) >= 8:
        raise MemoryError("as the test wants")
    return plain(self, hidden_NF)
RowLinear.forward = patched
"""


def test_a_text_without_room_alone_is_told_and_the_others_pass(tmp_path, in_followers):
    folder = checkpoint(tmp_path, "BloomForSequenceClassification")
    in_followers(ALWAYS_AT_EIGHT)
    expected = SinglePass(load_model(folder)).classify(PROMPTS[:2])
    shared = SinglePass(load_model(folder, tensor_parallel=2))
    with pytest.raises(MemoryError, match="Rank 1 of 2 ran out of memory: as the test wants"):
        shared.classify(PROMPTS)
    torch.testing.assert_close(shared.classify(PROMPTS[:2]), expected, atol=1e-4, rtol=1e-4)
    shared.model.group.followers.close()


def test_a_forward_raises_and_the_model_goes_on(tmp_path, raises_on_leader):
    folder = checkpoint(tmp_path, "BloomForCausalLM")
    input_ids = torch.tensor(PROMPTS[:1])
    expected, model = load_model(folder)(input_ids), load_model(folder, tensor_parallel=2)
    raises_on_leader(2)
    with pytest.raises(torch.OutOfMemoryError, match="as the test wants"):
        model(input_ids)
    torch.testing.assert_close(model(input_ids), expected, atol=1e-4, rtol=1e-4)
    model.group.followers.close()
