"""How often a decode step would synchronize with a GPU, counted on a CPU by the operations that do."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from batchloom.models import Engine, GenerationParams
from batchloom.models.generation import runner
from batchloom.models.generation.memory.gpu.backend import PagedBackend

Tensor = torch.Tensor
COPIES_DOWN = {Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy} | {
    getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "__contains__")
}
MAKES_A_TENSOR = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
ASKS_HOW_MANY = {"aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::repeat_interleave.Tensor"}


class CalledWaits(TorchFunctionMode):
    """Notes what Python calls: copies down, and lists and numbers that become tensors without being pinned."""

    def __init__(self):
        super().__init__()
        self.copies, self.others = [], []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in COPIES_DOWN:
            self.copies.append(function.__name__)
        elif function in MAKES_A_TENSOR and (keywords.get("device") is not None or function is Tensor.new_tensor):
            self.others.append("a list made a tensor on the device")
        elif function is torch.where and not all(isinstance(one, Tensor) for one in arguments):
            self.others.append("where with a number, which is copied")
        elif function in (Tensor.__getitem__, Tensor.__setitem__):
            places = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            if any(isinstance(place, list) for place in places):
                self.others.append("a list as an index")
        return function(*arguments, **keywords)


class DispatchedWaits(TorchDispatchMode):
    """Notes operators whose result has a size that only the device knows, masks as indexes among them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        name = operator.name()
        indexes = arguments[1] if name.startswith("aten::index") and isinstance(arguments[1], list | tuple) else ()
        is_masked = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indexes)
        if is_masked or name in ASKS_HOW_MANY or name.startswith("aten::unique"):
            self.found.append(name)
        return operator(*arguments, **(keywords or {}))


def waits_of_a_step(engine):
    """Copies down, other waits, and whether somebody was done."""
    with CalledWaits() as called, DispatchedWaits() as dispatched:
        outputs = engine.step()
    return called.copies, called.others + dispatched.found, bool(outputs)


def test_the_counter_sees_what_makes_a_host_wait():
    mask = torch.tensor([True, False])
    for wait in (
        lambda: mask.nonzero(),
        lambda: torch.zeros(2)[mask],
        lambda: torch.zeros(2).__setitem__(mask, torch.ones(1)),
        lambda: torch.tensor([1], device="cpu"),
        lambda: torch.zeros(2)[[0, 1]],
        lambda: torch.where(mask, 0.0, 1.0),
    ):
        with CalledWaits() as called, DispatchedWaits() as dispatched:
            wait()
        assert called.others or dispatched.found
    for copy in (
        mask.tolist,
        mask.cpu,
        mask.numpy,
        lambda: bool(mask[0]),
        lambda: int(mask[0]),
        lambda: mask[0].item(),
    ):
        with CalledWaits() as called:
            copy()
        assert len(called.copies) == 1


OPTIONS = [
    {},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "suppress_tokens": [9, 10], "bad_words_ids": [[4, 5], [8]]},
    {"forced_eos_token_id": 2, "exponential_decay_length_penalty": (2, 1.1), "encoder_no_repeat_ngram_size": 2},
]
SEARCHES = [
    {},
    {"num_beams": 4},
    {"do_sample": True, "top_k": 20, "top_p": 0.9},
    {"do_sample": True, "num_return_sequences": 3, "typical_p": 0.9},
    {"do_sample": True, "num_beams": 2},
]


@pytest.mark.parametrize("family", ["bart", "bloom"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "bans", "forced"])
@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "top_k", "samples", "beam samples"])
def test_a_step_copies_down_once_and_once_more_where_sequences_end(pair, monkeypatch, family, options, search):
    """Lengths differ, so that options act on some rows; the first step, which computes prompts, is not counted."""
    _, model = pair(family)
    monkeypatch.setattr(runner, "backend_of", PagedBackend)
    engine = Engine(model, num_lanes=1)  # in this thread, which counts
    for row in range(4):
        params = GenerationParams(min_new_tokens=5 + row, max_new_tokens=12 + 4 * row, **options, **search)
        engine.add(row, [7, 8, 9, 30 + row, 31], params)
    engine.step()
    num_plain = 0
    while engine.num_unfinished:
        copies, others, is_any_done = waits_of_a_step(engine)
        assert others == []
        # A sample may end before its request does: then its tokens come down, and nobody is done.
        assert len(copies) <= (2 if is_any_done or search.get("num_return_sequences") else 1)
        num_plain += len(copies) == 1
    assert num_plain >= 5
