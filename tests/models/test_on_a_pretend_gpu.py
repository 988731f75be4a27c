"""Engine and single passes on a GPU that is none: the CPU's answers, and how often the host waits for the device.

Steps are captured and replayed there. tests/gpu has the same on a GPU, with kernels of Triton.
"""

import pytest

from batchloom.models import Engine, GenerationParams, load_model
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
