"""The engine: what it refuses, what it counts, and that a request's answer does not depend on its neighbours."""

import pytest
import torch
import transformers

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.errors import ParamsError, RequestError, UnsupportedModelError
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend

PROMPTS = [[5, 9, 17, 30, 2], [44], list(range(10, 60)), [7, 7, 7], [100, 101, 102, 9, 8]]


@pytest.mark.parametrize(
    "params", [GenerationParams(max_new_tokens=9), GenerationParams(max_new_tokens=9, num_beams=3)]
)
def test_answers_are_the_same_alone_and_together_in_any_order(pair, params):
    _, model = pair("bart")
    alone = [Engine(model).generate([prompt], params)[0].outputs for prompt in PROMPTS]
    for max_slots in (1, 4, 64):
        together = Engine(model, max_slots=max_slots).generate(PROMPTS, params)
        backwards = Engine(model, max_slots=max_slots).generate(PROMPTS[::-1], params)[::-1]
        for one, two, three in zip(alone, together, backwards, strict=True):
            tokens = [output.token_ids for output in one]
            assert (
                tokens == [output.token_ids for output in two.outputs] == [output.token_ids for output in three.outputs]
            )


@pytest.mark.parametrize(("num_threads", "expected"), [(1, 1), (3, 3), (9, 4)])
def test_a_cpu_has_a_lane_a_thread_up_to_four(pair, monkeypatch, num_threads, expected):
    _, model = pair("bart")
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    assert len(Engine(model)._lanes) == expected


@pytest.mark.parametrize("family", ["bart", "bloom"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_do_not_depend_on_lanes(pair, monkeypatch, family, num_beams):
    """Nor does what is computed: a beginning that all prompts share is read by one lane for all."""
    monkeypatch.setattr("batchloom.models.generation.scheduler.FEWEST_SEQUENCES", 4)
    _, model = pair(family)
    prompts = [[*range(10, 50), *prompt, end] for prompt in PROMPTS for end in range(60, 66)]
    each = [GenerationParams(max_new_tokens=4 + n % 7, num_beams=num_beams) for n in range(30)]
    one, four = (Engine(model, max_slots=24, num_lanes=number) for number in (1, 4))
    expected, found = one.generate(prompts, each), four.generate(prompts, each)
    for answer, other in zip(expected, found, strict=True):
        assert [output.token_ids for output in answer.outputs] == [output.token_ids for output in other.outputs]
    assert four.stats.num_output_tokens == one.stats.num_output_tokens
    assert four.stats.num_steps > one.stats.num_steps, "only one lane was used"
    if family == "bloom":  # prompts would be 1614 tokens, were the beginning read for each; by each lane, 454 and 120
        assert max(one.stats.num_padded_prompt_tokens, four.stats.num_padded_prompt_tokens) < 570


def test_requests_with_different_params_share_a_batch(pair):
    _, model = pair("bart")
    each = [
        GenerationParams(max_new_tokens=6),
        GenerationParams(max_new_tokens=11, num_beams=2),
        GenerationParams(max_new_tokens=9, num_beams=4, num_return_sequences=2),
        GenerationParams(max_new_tokens=9, no_repeat_ngram_size=2),
        GenerationParams(max_new_tokens=6),
    ]
    together = Engine(model).generate(PROMPTS, each)
    for prompt, params, answer in zip(PROMPTS, each, together, strict=True):
        alone = Engine(model).generate([prompt], params)[0]
        assert [one.token_ids for one in answer.outputs] == [one.token_ids for one in alone.outputs]


def test_requests_that_differ_in_lengths_alone_are_searched_together(pair):
    _, model = pair("bart")
    each = [GenerationParams(max_new_tokens=3 + n, min_new_tokens=n) for n in range(5)]
    engine = Engine(model)
    for n, (prompt, params) in enumerate(zip(PROMPTS, each, strict=True)):
        engine.add(n, prompt, params)
    engine.step()
    assert len(engine._lanes.runners[0]._running) == 1
    answers = {}
    while engine.num_unfinished:
        answers |= {output.request_id: output for output in engine.step()}
    for n, (prompt, params) in enumerate(zip(PROMPTS, each, strict=True)):
        if n in answers:
            assert answers[n].outputs == Engine(model).generate([prompt], params)[0].outputs


def test_requests_may_come_while_others_run(pair):
    _, model = pair("bart")
    params = GenerationParams(max_new_tokens=8, min_new_tokens=8)
    engine = Engine(model, max_slots=2)
    engine.add("first", PROMPTS[0], params)
    answers = {output.request_id: output for _ in range(3) for output in engine.step()}
    engine.add(("second", 2), PROMPTS[1], params)
    while engine.num_unfinished:
        answers |= {output.request_id: output for output in engine.step()}
    assert set(answers) == {"first", ("second", 2)}
    assert answers["first"].num_prompt_tokens == len(PROMPTS[0])
    assert engine.step() == []


def test_the_work_done_is_counted(pair):
    _, model = pair("bart")
    engine = Engine(model)
    answers = engine.generate(PROMPTS, GenerationParams(max_new_tokens=5))
    num_tokens = sum(map(len, PROMPTS))
    assert engine.stats.num_prompt_tokens == num_tokens <= engine.stats.num_padded_prompt_tokens
    assert engine.stats.num_output_tokens == sum(len(answer.outputs[0].token_ids) for answer in answers)
    assert 1 <= engine.stats.num_steps <= 5
    assert engine.stats.busy_seconds > 0


@pytest.mark.parametrize(("backend", "has_blocks"), [(PooledBackend, False), (PagedBackend, True)])
def test_what_is_held_is_told_while_requests_run_and_given_back(pair, monkeypatch, backend, has_blocks):
    _, model = pair("bart")
    monkeypatch.setattr(runner, "backend_of", backend)
    engine = Engine(model, max_slots=2, num_lanes=1)
    idle = engine.load
    assert (idle.num_sequences, idle.num_waiting, idle.num_cached_tokens) == (0, 0, 0)
    for number, prompt in enumerate(PROMPTS[:3]):
        engine.add(number, prompt, GenerationParams(max_new_tokens=4, min_new_tokens=4))
    assert engine.load.num_waiting == 3
    engine.step()
    load = engine.load
    assert (load.num_sequences, load.num_waiting) == (2, 1)
    assert 2 * 4 < load.num_cached_tokens <= load.max_cached_tokens == idle.max_cached_tokens
    assert (idle.num_blocks < load.num_blocks <= load.max_blocks) == has_blocks
    while engine.num_unfinished:
        engine.step()
    assert (engine.load.num_sequences, engine.load.num_waiting, engine.load.num_cached_tokens) == (0, 0, 0)
    assert engine.load.num_blocks == idle.num_blocks


def test_the_reason_tells_an_end_token_from_the_limit(pair):
    _, model = pair("bart")
    (ended,) = Engine(model).generate(
        [PROMPTS[0]], GenerationParams(max_new_tokens=4, forced_eos_token_id=2, min_length=99)
    )
    assert (ended.outputs[0].token_ids[-1], ended.outputs[0].finish_reason) == (2, "eos")
    (cut,) = Engine(model).generate([PROMPTS[0]], GenerationParams(max_new_tokens=4, suppress_tokens=[2]))
    assert (len(cut.outputs[0].token_ids), cut.outputs[0].finish_reason) == (4, "length")


@pytest.mark.parametrize("family", ["blenderbot", "bart", "bart_causal"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 3, "early_stopping": "never"}], ids=str)
def test_answers_that_end_before_the_positions_do_are_the_references(pair, family, search):
    """A max_length above the decoder's positions was refused; the reference answers, as long as the answer ends."""
    reference, model = pair(family)
    options = {"max_length": 1000, "exponential_decay_length_penalty": (3, 1.6), **search}
    for prompt, answer in zip(PROMPTS, Engine(model).generate(PROMPTS, GenerationParams(**options)), strict=True):
        with torch.no_grad():
            expected = reference.generate(torch.tensor([prompt]), **options)[0]
        start = len(prompt) if family == "bart_causal" else 1
        assert answer.outputs[0].token_ids == expected[start:].tolist()
        assert answer.outputs[0].finish_reason == "eos"


@pytest.mark.parametrize(("family", "num_new"), [("blenderbot", 96), ("bart_causal", 97 - len(PROMPTS[0]))])
def test_an_answer_that_does_not_end_is_cut_at_the_last_position(pair, family, num_new):
    """Where the reference fails. The last token is never an input, so it needs no position."""
    _, model = pair(family)
    params = GenerationParams(max_new_tokens=500, suppress_tokens=[2])
    (answer,) = Engine(model).generate([PROMPTS[0]], params)
    assert (len(answer.outputs[0].token_ids), answer.outputs[0].finish_reason) == (num_new, "length")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GenerationParams(), "empty"),
        ([5] * 97, GenerationParams(), "97 tokens; the model has 96 positions"),
        ([5, 211], GenerationParams(), "ids from 5 to 211"),
        ([-1], GenerationParams(), "ids from -1"),
        ([5], GenerationParams(max_new_tokens=200, min_new_tokens=97), "Set min_new_tokens to 96 at most"),
        ([5], GenerationParams(max_length=1), "leaves no room"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_and_the_others_go_on(pair, prompt, params, message):
    _, model = pair("bart")
    engine = Engine(model)
    engine.add(0, PROMPTS[0], GenerationParams(max_new_tokens=2))
    with pytest.raises(RequestError, match=message):
        engine.add(1, prompt, params)
    assert engine.num_unfinished == 1


def test_params_with_tokens_outside_the_vocabulary_are_refused_before_anything_runs(pair):
    """They ended the step of all that ran with an IndexError, and a negative id meant another token."""
    _, model = pair("bart")
    engine = Engine(model)
    engine.add(0, PROMPTS[0], GenerationParams(max_new_tokens=2))
    with pytest.raises(ParamsError, match="suppress_tokens names token 211"):
        engine.add(1, PROMPTS[1], GenerationParams(suppress_tokens=[5, 211]))
    assert engine.num_unfinished == 1


def test_a_refused_call_leaves_nothing_behind(pair):
    """Its first request stayed in the queue, and was answered in the place of the next call's first."""
    _, model = pair("bart")
    engine = Engine(model)
    with pytest.raises(RequestError):
        engine.generate([PROMPTS[0], [-1]], GenerationParams(max_new_tokens=9))
    assert engine.num_unfinished == 0
    params = GenerationParams(max_new_tokens=3)
    assert engine.generate([PROMPTS[2]], params) == Engine(model).generate([PROMPTS[2]], params)


def test_a_call_does_not_take_the_answers_of_requests_that_were_added(pair):
    _, model = pair("bart")
    engine, params = Engine(model), GenerationParams(max_new_tokens=3)
    engine.add(0, PROMPTS[0], params)
    with pytest.raises(RequestError, match="while 1 requests of add"):
        engine.generate([PROMPTS[1]], params)
    answers = []
    while engine.num_unfinished:
        answers += engine.step()
    assert [answer.request_id for answer in answers] == [0]
    assert len(engine.generate([PROMPTS[1]], params)) == 1


@pytest.mark.parametrize("architecture", ["BloomForSequenceClassification", "BloomModel", "BartModel"])
def test_a_model_without_a_language_model_head_is_refused(tmp_path, architecture):
    """bart-base declares BartModel."""
    sizes = {"hidden_size": 8, "n_layer": 1, "n_head": 2}
    if architecture.startswith("Bart"):
        sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    kind = "Bart" if architecture.startswith("Bart") else "Bloom"
    config = getattr(transformers, f"{kind}Config")(vocab_size=60, **sizes)
    getattr(transformers, architecture)(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    with pytest.raises(UnsupportedModelError, match=f"{architecture} has no language-model head"):
        Engine(model)
