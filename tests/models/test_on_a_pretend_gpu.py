"""Engine and single passes on a GPU that is none: the CPU's answers, and how often the host waits for the device.

Steps are captured and replayed there. tests/gpu has the same on a GPU, with kernels of Triton.
"""

from collections import Counter

import pytest

from batchloom.models import Engine, GenerationParams, load_model
from tests.models.generation.conftest import make_checkpoint
from tests.pretend_kernels import use_kernels

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


def said(engine, all_params, prompts=PROMPTS):
    for row, (prompt, params) in enumerate(zip(prompts, all_params, strict=True)):
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


KERNELS_SEARCHES = {
    "bart": {"num_beams": 2, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2},
    "bloom": {"do_sample": True, "top_k": 20, "no_repeat_ngram_size": 1},
}


@pytest.mark.parametrize("family", KERNELS_SEARCHES)
@pytest.mark.usefixtures("pretend_gpu")
def test_captured_steps_of_the_kernels_say_what_the_cpu_says(checkpoint_of, monkeypatch, family):
    """The kernels themselves, with padding rows; the third step is warmed up, captured and replayed."""
    all_params = [GenerationParams(min_new_tokens=5, max_new_tokens=5, **KERNELS_SEARCHES[family])] * 3
    expected = said(Engine(on("cpu", checkpoint_of(family))), all_params, PROMPTS[:3])
    use_kernels(monkeypatch, interprets=True)
    engine = Engine(on("cuda", checkpoint_of(family)))
    assert said(engine, all_params, PROMPTS[:3]) == expected
    assert engine._lanes.runners[0]._backend._graphs.num_steps == {"eager": 2, "captured": 1, "replayed": 3}


CROSSING = {"aten.addmm": 6, "kernels.append": 1, "kernels.attend": 1, "aten.gelu": 1}
NORM_FIRST = {"kernels.norm_of_sum": 2, "aten.add": 1, "aten.native_layer_norm": 1}
LAUNCHES_OF_A_LAYER = {
    "bart": {**CROSSING, "kernels.norm_of_sum": 3},
    "blenderbot": {**CROSSING, **NORM_FIRST},
    "mbart": {**CROSSING, **NORM_FIRST},
    "bloom": {
        "aten.addmm": 3, "aten._addmm_activation": 1, "kernels.append": 1, "kernels.norm_of_sum": 1, "aten.add": 1,
        "aten.native_layer_norm": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", LAUNCHES_OF_A_LAYER)
def test_what_a_captured_step_launches_for_each_layer(pretend_gpu, tmp_path, monkeypatch, family):
    """A small model's step takes as long as its launches. cuBLAS adds one where it splits sums."""
    use_kernels(monkeypatch)
    launches = []
    for num_layers in (1, 2):
        folder = str(tmp_path / f"{family}-{num_layers}")
        make_checkpoint(folder, family, **{"n_layer" if family == "bloom" else "decoder_layers": num_layers})
        engine = Engine(on("cuda", folder))
        pretend_gpu.forget()
        said(engine, [GenerationParams(min_new_tokens=4, max_new_tokens=4)] * len(PROMPTS))
        assert pretend_gpu.num_captures == 1
        launches.append(Counter({name.rpartition(".")[0]: num for name, num in pretend_gpu.launches.items()}))
    assert launches[1] - launches[0] == LAUNCHES_OF_A_LAYER[family]


def test_norms_of_sums_are_one_kernel_in_captured_steps_alone(pretend_gpu, checkpoint_of, monkeypatch):
    """Eagerly a kernel of few rows takes the host longer than it saves; the warm-up launches what the capture does."""
    use_kernels(monkeypatch)
    engine = Engine(on("cuda", checkpoint_of("bart")))
    num_norms = 3 * engine._lanes.runners[0].model.num_layers
    for row, prompt in enumerate(PROMPTS):
        engine.add(row, prompt, GenerationParams(min_new_tokens=5, max_new_tokens=5))
    launched = []
    while engine.num_unfinished:
        pretend_gpu.forget()
        engine.step()
        launched.append(pretend_gpu.operations["kernels.norm_of_sum.default"])
    assert launched == [0, 0, 2 * num_norms, 0, 0]


# What a replayed step of one search asks of the host beside the graph, with min_new_tokens, float32; half are views.
OUTSIDE = {
    "greedy": (30, ["best_and_normalizer"]),
    "top_k": (48, ["gumbels"]),
    "beams": (148, ["best_and_normalizer"]),
}


@pytest.mark.parametrize("bans", [{}, {"no_repeat_ngram_size": 3}], ids=["plain", "ngrams"])
@pytest.mark.parametrize("search", OUTSIDE)
def test_what_a_replayed_step_asks_beside_its_graph(pretend_gpu, checkpoint_of, monkeypatch, search, bans):
    """Each is some microseconds of the host. A ban of n-grams is a kernel, and a view of the tokens in use."""
    use_kernels(monkeypatch)
    engine = Engine(on("cuda", checkpoint_of("bart")))
    params = GenerationParams(min_new_tokens=12, max_new_tokens=12, **SEARCHES[search], **bans)
    for row, prompt in enumerate(PROMPTS):
        engine.add(row, prompt, params)
    asked = []
    while engine.num_unfinished:
        pretend_gpu.forget()
        engine.step()
        asked.append(+pretend_gpu.operations)
    replayed = asked[3:-1]  # the first two are eager, the third is captured, and the last drops what is done
    assert all(one["replay"] == 1 for one in replayed)
    number, kernels = OUTSIDE[search]
    assert {one.total() for one in replayed} == {number + 2 * bool(bans)}
    kernels = [*kernels, *(["ban_completions"] if bans else [])]
    expected = {f"kernels.{name}.default": 1 for name in kernels}
    assert all({name: num for name, num in one.items() if name.startswith("kernels.")} == expected for one in replayed)
