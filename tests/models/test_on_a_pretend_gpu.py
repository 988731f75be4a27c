"""Engine and single passes on a GPU that is none: the CPU's answers, and how often the host waits for the device.

Steps are captured and replayed there. tests/gpu has the same on a GPU, with kernels of Triton.
"""

import pytest

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.generation.memory.gpu import backend
from batchloom.models.generation.memory.gpu.attention import BlockReader
from tests.models.generation.conftest import make_checkpoint

OPTIONS = {
    "plain": {},
    "bans": {
        "no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "suppress_tokens": [9, 10], "bad_words_ids": [[4, 5], [8]]
    },
    "forced": {
        "forced_eos_token_id": 2, "exponential_decay_length_penalty": (2, 1.1), "encoder_no_repeat_ngram_size": 2
    },
}  # fmt: skip
SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "top_k": {"do_sample": True, "top_k": 20, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 3, "typical_p": 0.9},
    "beam samples": {"do_sample": True, "num_beams": 2},
}
PROMPTS = [[(7 * row + 3 * place) % 200 + 5 for place in range(3 * row + 2)] for row in range(7)]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(family))
            make_checkpoint(made[family], family)
        return made[family]

    return get


def on(device, folder):
    return load_model(folder, dtype="float32", device=device)


def said(engine, all_params):
    for row, (prompt, params) in enumerate(zip(PROMPTS, all_params, strict=True)):
        engine.add(row, prompt, params)
    answers = {}
    while engine.num_unfinished:
        answers |= {one.request_id: [out.token_ids for out in one.outputs] for one in engine.step()}
    return answers


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_a_step_waits_once_and_once_more_where_sequences_end(pretend_gpu, checkpoint_of, family, options, search):
    """Lengths differ, so that options act on some rows. The prompts' own step waits no more than others."""
    all_params = [
        GenerationParams(min_new_tokens=5 + row, max_new_tokens=12 + 2 * row, **OPTIONS[options], **SEARCHES[search])
        for row in range(len(PROMPTS))
    ]
    expected = said(Engine(on("cpu", checkpoint_of(family))), all_params)
    engine = Engine(on("cuda", checkpoint_of(family)))
    assert said(engine, all_params) == expected
    for row, (prompt, params) in enumerate(zip(PROMPTS, all_params, strict=True)):
        engine.add(row, prompt, params)
    num_plain, answers = 0, {}
    while engine.num_unfinished:
        pretend_gpu.forget()
        outputs = engine.step()
        answers |= {one.request_id: [out.token_ids for out in one.outputs] for one in outputs}
        assert set(pretend_gpu.waits) == {"a download"}
        # A sample may end before its request does: then its tokens come down, and nobody is done.
        assert pretend_gpu.waits.total() <= (2 if outputs or search == "samples" else 1)
        num_plain += pretend_gpu.waits.total() == 1
    assert num_plain >= 5
    assert answers == expected
    assert engine._lanes.runners[0]._backend._graphs.num_steps["replayed"] > 5


class FusedStandIn(BlockReader):
    """Launches what Triton's kernel would: one operation a layer, and nothing before."""

    def __init__(self, *_):
        pass

    def attend(self, _, q_NHK):
        return q_NHK.clone()


@pytest.mark.parametrize(("family", "most"), [("bart", 17), ("blenderbot", 17), ("bloom", 11)])
def test_a_captured_step_launches_few_operations_a_layer(pretend_gpu, tmp_path, monkeypatch, family, most):
    """A small model's step takes as long as its launches: of each attention products and a kernel, its keys' and
    values' writes, of each block a sum and a norm. cuBLAS adds a launch where it splits sums."""
    monkeypatch.setattr(backend, "reader_on", lambda _: FusedStandIn)
    launched = []
    for num_layers in (1, 3):
        folder = str(tmp_path / f"{family}-{num_layers}")
        make_checkpoint(folder, family, **{"n_layer" if family == "bloom" else "decoder_layers": num_layers})
        engine = Engine(on("cuda", folder))
        pretend_gpu.forget()
        said(engine, [GenerationParams(min_new_tokens=9, max_new_tokens=9)] * len(PROMPTS))
        assert pretend_gpu.num_captures == 1
        launched.append(pretend_gpu.launches.total())
    assert (launched[1] - launched[0]) / 2 <= most
