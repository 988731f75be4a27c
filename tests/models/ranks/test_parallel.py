"""Processes that hold a model together give what one gives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import transformers

from batchloom.models import Engine, GenerationParams, SinglePass, load_model
from batchloom.models.checkpoints.loading import load_for_rank
from batchloom.models.errors import DeviceError, ParamsError, RankLostError, RequestError
from batchloom.models.ranks.group import Collectives, TensorParallel
from batchloom.models.ranks.processes import FollowerProcesses

BART = {
    "vocab_size": 83,  # odd: the last rank holds fewer rows
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "num_labels": 3,
}
BLOOM = {
    "vocab_size": 83,
    "hidden_size": 24,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "num_labels": 3,
}
ARCHITECTURES = (
    "BartModel",
    "BartForConditionalGeneration",
    "BartForCausalLM",
    "BartForSequenceClassification",
    "BartForQuestionAnswering",
    "MBartModel",
    "MBartForConditionalGeneration",
    "MBartForCausalLM",
    "MBartForSequenceClassification",
    "MBartForQuestionAnswering",
    "BlenderbotModel",
    "BlenderbotForConditionalGeneration",
    "BlenderbotForCausalLM",
    "BlenderbotSmallModel",
    "BlenderbotSmallForConditionalGeneration",
    "BlenderbotSmallForCausalLM",
    "BloomModel",
    "BloomForCausalLM",
    "BloomForSequenceClassification",
    "BloomForTokenClassification",
    "BloomForQuestionAnswering",
)
GENERATING = tuple(name for name in ARCHITECTURES if name.endswith(("ConditionalGeneration", "CausalLM")))
SEARCHES = {
    "greedy": GenerationParams(num_beams=1, do_sample=False, max_new_tokens=9, repetition_penalty=1.3),
    "beams": GenerationParams(num_beams=3, max_new_tokens=9, num_return_sequences=2, no_repeat_ngram_size=2),
    "sampling": GenerationParams(do_sample=True, max_new_tokens=9, num_return_sequences=2, top_p=0.9, temperature=1.5),
    "sampling from all": GenerationParams(do_sample=True, max_new_tokens=9, top_k=0, temperature=0.7),
    "sampling inside beam search": GenerationParams(do_sample=True, num_beams=3, max_new_tokens=9, top_p=0.9),
    "sampling in beams": GenerationParams(do_sample=True, num_beams=3, max_new_tokens=9, top_k=5, temperature=1.5),
    "forced and banned": GenerationParams(
        num_beams=4,
        max_new_tokens=7,
        min_new_tokens=3,
        forced_eos_token_id=2,
        bad_words_ids=((33,), (5, 9)),
        suppress_tokens=(60, 82),
        renormalize_logits=True,
    ),
}
PROMPTS = [[5, 9, 14, 33, 2], [7, 2], [60, 61, 82, 80, 4, 4, 17, 2]]
PREFIXES = [[44, 71, 9], [], [12]]  # that answers begin with


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(architecture) -> a folder with large random weights and biases, made once."""
    made = {}

    def get(architecture):
        if architecture not in made:
            family = architecture.removesuffix("Model").split("For")[0]
            settings = BLOOM if family == "Bloom" else BART
            if architecture.endswith("CausalLM") and family != "Bloom":
                settings = {**settings, "is_encoder_decoder": False}
            torch.manual_seed(0)
            reference = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**settings))
            with torch.no_grad():
                for name, parameter in reference.named_parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0.0, 0.3)
                    elif name.endswith("bias"):  # a bias that every rank adds would show
                        parameter.normal_()
                if hasattr(reference, "final_logits_bias"):
                    reference.final_logits_bias.normal_()
            made[architecture] = str(tmp_path_factory.mktemp(architecture))
            reference.save_pretrained(made[architecture])
        return made[architecture]

    return get


def inputs(architecture):
    ids = torch.randint(4, 83, (3, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    needs_decoder_ids = architecture.startswith("Blenderbot") and not architecture.endswith("CausalLM")
    return (ids, None, ids[:, :6]) if needs_decoder_ids else (ids,)


def run_rank(index, size, folders, meeting, results):
    torch.set_num_threads(1)
    place = torch.device("cpu")
    group = TensorParallel(
        rank=index,
        size=size,
        collectives=Collectives(torch.distributed.FileStore(f"{meeting}/file", size), index, size, place).join(),
    )
    found = {}
    for architecture, folder in folders.items():
        model = load_for_rank(folder, None, "float32", place, group)
        found[architecture] = (model(*inputs(architecture)), sum(p.numel() for p in model.parameters()))
    torch.save(found, f"{results}/{index}.pt")
    group.collectives.close()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_rank_gives_the_logits_of_one_process_for_every_head(checkpoint, tmp_path, size):
    """Sums over ranks are other roundings of the same numbers: 1e-4 on logits of size 10 in float32."""
    folders = {architecture: checkpoint(architecture) for architecture in ARCHITECTURES}
    torch.multiprocessing.spawn(run_rank, (size, folders, str(tmp_path), str(tmp_path)), nprocs=size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for architecture, folder in folders.items():
        model = load_model(folder)
        expected = model(*inputs(architecture))
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        for logits, num_parameters_of_rank in (rank[architecture] for rank in found):
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4, msg=architecture)
            assert num_parameters_of_rank < (1 / size + 0.2) * num_parameters, architecture  # norms, positions: whole
        for other in found[1:]:  # ranks that chose from unlike logits would fall out of step
            torch.testing.assert_close(other[architecture][0], found[0][architecture][0], atol=0, rtol=0)


def tokens(outputs):
    return [[(one.token_ids, one.finish_reason) for one in output.outputs] for output in outputs]


def scores(outputs):
    return [one.score for output in outputs for one in output.outputs]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", GENERATING)
def test_two_ranks_choose_the_tokens_of_one(checkpoint, architecture, size):
    one = load_model(checkpoint(architecture))
    both = load_model(checkpoint(architecture), tensor_parallel=size)
    alone, shared = Engine(one), Engine(both)
    for search, params in SEARCHES.items():
        expected, found = alone.generate(PROMPTS, params, seed=3), shared.generate(PROMPTS, params, seed=3)
        assert tokens(found) == tokens(expected), search
        assert scores(found) == pytest.approx(scores(expected), abs=1e-3)
        begun = [engine.generate(PROMPTS, params, seed=3, answer_prefixes=PREFIXES) for engine in (alone, shared)]
        assert tokens(begun[1]) == tokens(begun[0]), search
        assert scores(begun[1]) == pytest.approx(scores(begun[0]), abs=1e-3)
        assert scores(begun[0]) != pytest.approx(scores(expected), abs=1e-3), "prefixes changed nothing"
    both.group.followers.close()


@pytest.fixture(scope="module")
def shared(checkpoint):
    """A language model on two ranks."""
    model = load_model(checkpoint("BartForConditionalGeneration"), tensor_parallel=2)
    yield model
    model.group.followers.close()


def test_stop_strings_are_looked_up_by_the_leader_alone(checkpoint, shared):
    """The others have no tokenizer: a lambda does not travel, the texts that it gives do."""

    def text(token_ids):
        return "".join(f"<{token}>" for token in token_ids)

    alone = Engine(load_model(checkpoint("BartForConditionalGeneration")), stop_text=text)
    plain = alone.generate(PROMPTS, SEARCHES["greedy"])
    params = GenerationParams(
        num_beams=1, max_new_tokens=9, repetition_penalty=1.3, stop_strings=(f"<{plain[0].outputs[0].token_ids[3]}>",)
    )
    expected = alone.generate(PROMPTS, params)
    assert "stop" in {output.outputs[0].finish_reason for output in expected}
    assert tokens(Engine(shared, stop_text=text).generate(PROMPTS, params)) == tokens(expected)


def test_requests_that_cannot_be_served_leave_the_ranks_in_step(checkpoint, shared):
    engine, single_pass = Engine(shared), SinglePass(shared)
    with pytest.raises(RequestError):
        engine.generate([[5, 400]])
    with pytest.raises(ParamsError):
        engine.generate(PROMPTS, GenerationParams(stop_strings=("x",)))
    with pytest.raises(RequestError):
        shared(torch.full((1, 50), 5))
    with pytest.raises(RequestError):
        single_pass.embed([[5], []])
    alone = SinglePass(load_model(checkpoint("BartForConditionalGeneration")))
    sequences = PROMPTS * 3
    for method, arguments in (
        ("embed", (sequences,)),
        ("score", (sequences, sequences)),
        ("score_targets", (sequences, [[one, one[:2]] for one in sequences])),
        ("top_tokens", (sequences, [[0]] * 9, 2)),
    ):
        expected, found = (getattr(each, method)(*arguments) for each in (alone, single_pass))
        if method == "score":
            found, expected = [[s.log_probs for s in scores] for scores in (found, expected)]
        if method == "score_targets":
            found, expected = [[s.log_probs for own in scores for s in own] for scores in (found, expected)]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["BartModel", pytest.param("BloomModel", marks=pytest.mark.slow)])
def test_two_ranks_give_the_states_and_the_weights_of_all_heads(checkpoint, architecture):
    both = load_model(checkpoint(architecture), tensor_parallel=2)
    outputs = ("mean", "per_token", "hidden_states", "attentions")
    if architecture == "BartModel":
        outputs = (*outputs, "cross_attentions")
    alone = SinglePass(load_model(checkpoint(architecture)))
    expected = alone.states(PROMPTS, outputs, layer=1, normalize=True)
    found = SinglePass(both, max_batch_tokens=8).states(PROMPTS, outputs, layer=1, normalize=True)
    # The bound of this page's other tests: sums of the ranks round differently. Weights of two ranks' heads in each
    # other's places differ by 1e-1.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found[0]["attentions"].shape == (2, 4, 5, 5)
    torch.testing.assert_close(
        SinglePass(both).embed(PROMPTS, ["cls", "last"], layer=-2),
        alone.embed(PROMPTS, ["cls", "last"], layer=-2),
        atol=1e-4,
        rtol=1e-4,
    )
    with pytest.raises(RequestError, match="layer = 9"):
        SinglePass(both).hidden_states(PROMPTS, layer=9)
    assert len(SinglePass(both).hidden_states(PROMPTS)) == 3  # a refusal leaves the ranks in step
    both.group.followers.close()


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("BartForSequenceClassification", "classify"),
        pytest.param("BloomForSequenceClassification", "classify", marks=pytest.mark.slow),
        pytest.param("BloomForTokenClassification", "token_logits", marks=pytest.mark.slow),
        pytest.param("BartForQuestionAnswering", "spans", marks=pytest.mark.slow),
        pytest.param("BloomForQuestionAnswering", "spans", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_classify_as_one(checkpoint, architecture, method):
    both = load_model(checkpoint(architecture), tensor_parallel=2)
    found, expected = (
        getattr(SinglePass(model), method)(PROMPTS) for model in (both, load_model(checkpoint(architecture)))
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    both.group.followers.close()


def run(engine):
    while engine.num_unfinished:
        engine.step()


def test_a_killed_rank_ends_the_model_with_words(checkpoint):
    model = load_model(checkpoint("BloomForCausalLM"), tensor_parallel=2)
    engine = Engine(model)
    engine.add(0, PROMPTS[0], GenerationParams(max_new_tokens=30, min_new_tokens=30))
    engine.step()
    os.kill(model.group.followers.process_ids[0], signal.SIGKILL)
    with pytest.raises(RankLostError, match=r"Rank 1 of the model \(process \d+\) ended with signal 9"):
        run(engine)
    with pytest.raises(RankLostError):
        Engine(model)


def test_a_rank_killed_on_its_way_to_the_others_is_noticed_at_once(checkpoint, monkeypatch):
    """The leader waited five minutes for it, as a group does."""
    join = FollowerProcesses.join

    def kill_and_join(followers):
        os.kill(followers.process_ids[0], signal.SIGKILL)
        join(followers)

    monkeypatch.setattr(FollowerProcesses, "join", kill_and_join)
    began = time.monotonic()
    with pytest.raises(RankLostError, match=r"Rank 1 of the model \(process \d+\) ended with signal 9"):
        load_model(checkpoint("BloomForCausalLM"), device="cpu", tensor_parallel=2)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("end", ["signal", "exit"])
def test_ranks_end_with_the_process_that_started_them(checkpoint, end, tmp_path):
    """Killed without a chance to clean up, or ended as programs are: seconds later neither process nor file is left."""
    code = (
        "import sys, time\nfrom batchloom import models\n"
        f"model = models.load_model({checkpoint('BartModel')!r}, tensor_parallel=2)\n"
        "print(*model.group.followers.process_ids, flush=True)\n"
        f"time.sleep({600 if end == 'signal' else 0})\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as first:
        process_ids = first.stdout.readline().split()
        assert len(process_ids) == 1
        if end == "signal":
            first.kill()
        assert first.wait() == (-signal.SIGKILL if end == "signal" else 0)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process_id}/cmdline").exists() for process_id in process_ids) or any(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_heads_that_do_not_divide_are_refused_with_sizes_that_do(checkpoint):
    with pytest.raises(DeviceError, match=r"tensor_parallel = 3 does not divide 4 attention heads\. Use 1, 2 or 4\."):
        load_model(checkpoint("BartModel"), tensor_parallel=3)


def test_more_ranks_than_devices_are_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"each rank needs a device of its own; this process sees 1"):
        load_model(checkpoint("BartModel"), device="cuda", tensor_parallel=2)


def test_a_failure_of_another_rank_is_told(checkpoint, monkeypatch):
    """Checked where it hurts: what the leader can do, the other cannot."""
    monkeypatch.setattr("batchloom.models.checkpoints.loading.torch.get_num_threads", lambda: "many")
    with pytest.raises(DeviceError, match=r"Rank 1 of 2 failed: RuntimeError: set_num_threads"):
        load_model(checkpoint("BartModel"), tensor_parallel=2)
