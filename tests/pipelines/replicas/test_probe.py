"""Ranks that answer as one rank does are let in; ranks that divide a model wrongly are not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from batchloom import models, pipelines
from batchloom.models.checkpoints import memory
from batchloom.models.layers import int8
from batchloom.models.layers.layout import product
from batchloom.models.layers.linear import ColumnLinear, RowLinear
from batchloom.models.ranks.group import TensorSlice
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.replicas import probe


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory) -> Callable[[str], str]:
    """Four layers wide enough to divide, biases that show, weights of the size that trained ones have."""

    def make(architecture: str) -> str:
        family = architecture.split("For")[0]
        sizes = {
            "vocab_size": 503, "num_labels": 3, "eos_token_id": 2, "n_layer": 4, "n_head": 4, "hidden_size": 64,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
        }  # fmt: skip
        if family != "Bloom":
            sizes["d_model"] = sizes.pop("hidden_size")
        torch.manual_seed(0)
        reference = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**sizes))
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                if parameter.dim() > 1 or name.endswith("bias"):
                    parameter.normal_(0.0, 0.05)
        folder = str(tmp_path_factory.mktemp(architecture))
        reference.save_pretrained(folder)
        return folder

    return make


def let_in(folder: str, dtype: str = "float32") -> None:
    """What a replica of two ranks does before its first unit."""
    model = models.load_model(folder, dtype=dtype, device="cpu", tensor_parallel=2)
    try:
        probe.check(probe.ask(model), probe.reference(folder, None, 1), 2, dtype)
    finally:
        model.group.followers.close()


@pytest.mark.parametrize(
    ("architecture", "dtypes"),
    [
        ("BartForConditionalGeneration", ("float32", "float16", "bfloat16")),
        ("BloomForCausalLM", ("float32", "float16", "bfloat16")),
        ("BlenderbotForConditionalGeneration", ("float32",)),
        ("BlenderbotSmallForConditionalGeneration", ("float32",)),
        ("BartForSequenceClassification", ("float32",)),
        ("BartForQuestionAnswering", ("float32",)),
        ("BloomForSequenceClassification", ("float32",)),
    ],
)
def test_two_ranks_that_divide_a_model_rightly_are_let_in(make_checkpoint, architecture, dtypes) -> None:
    folder = make_checkpoint(architecture)
    for dtype in dtypes:
        let_in(folder, dtype)


def add_the_bias_before_the_sum_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RowLinear.forward

    def forward(layer: RowLinear, hidden: torch.Tensor) -> torch.Tensor:
        if layer.group.size == 1:
            return right(layer, hidden)
        weight = layer.weight if layer._laid_out is None else layer._laid_out
        return layer.group.all_reduce(product(hidden, weight, layer.bias)).add_(layer.bias)

    monkeypatch.setattr(RowLinear, "forward", forward)


def read_the_neighbours_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ColumnLinear.slices

    def slices(layer: ColumnLinear) -> dict[str, TensorSlice]:
        if layer.group.size == 1:
            return right(layer)
        neighbours = slice(layer.rows, 2 * layer.rows)
        return {name: replace(held, rows=neighbours) for name, held in right(layer).items()}

    monkeypatch.setattr(ColumnLinear, "slices", slices)


def hold_the_columns_of_one_layer_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right, first = RowLinear.lay_out, []

    def lay_out(layer: RowLinear) -> None:
        if layer.group.size > 1 and not first:
            first.append(layer)
            layer.weight.copy_(layer.weight.roll(layer.columns // 2, dims=1))
        right(layer)

    monkeypatch.setattr(RowLinear, "lay_out", lay_out)


@pytest.mark.parametrize(
    "fault", [add_the_bias_before_the_sum_too, read_the_neighbours_rows, hold_the_columns_of_one_layer_in_another_order]
)
@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BloomForCausalLM"])
def test_a_wrong_division_is_refused(make_checkpoint, monkeypatch, architecture, fault) -> None:
    """The fault is in this process, the leader, alone: what it adds or reads wrongly, all ranks get by the sums."""
    folder = make_checkpoint(architecture)
    fault(monkeypatch)
    with pytest.raises(JobError, match=r"2 ranks do not answer the start-up probe as one rank does: in float32"):
        let_in(folder)


def test_answers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(JobError, match="off by nan"):
        probe.check(probe.Answers(((1.0, float("nan")),), ()), probe.Answers(((1.0, 2.0),), ()), 2, "float32")


def test_the_probe_asks_all_over_the_vocabulary_and_ends_as_texts_do(make_checkpoint) -> None:
    model = models.stream_model(make_checkpoint("BartForConditionalGeneration"))
    rows = probe._rows(model, probe.FOR_RANKS)
    assert [len(row) for row in rows] == [probe.FOR_RANKS.num_tokens] * probe.FOR_RANKS.num_rows
    assert {row[-1] for row in rows} == {model.config.eos_token_id}
    ids = [token for row in rows for token in row[:-1]]
    assert {token * 8 // 503 for token in ids} == set(range(8))  # every rank's share, for up to eight
    assert not {0, 1, 2} & set(ids)


@pytest.fixture
def job(make_job: Callable[..., Any]) -> Iterator[Any]:
    config = make_job()
    return replace(config, engine=replace(config.engine, tensor_parallel=2, device="cpu"))


def refusal(job: Any) -> str:
    """What a job says that fails. The error itself would hold its actors, and with them the processors of the next."""
    with pytest.raises(JobError) as caught:
        pipelines.run(job)
    return str(caught.value)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_keeps_the_answers_of_one_rank_and_refuses_ranks_that_differ(job) -> None:
    kept = Path(job.output.path) / "_batchloom" / "probe.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"batchloom": "0", "fingerprint": "of another job", "answers": [[0.0]]}')  # computed anew
    pipelines.run(job)
    right = json.loads(kept.read_text())
    answers = right["answers"]
    wrong = json.dumps({**right, "answers": {**answers, "values": [[one + 0.1 for one in answers["values"][0]]]}})

    kept.write_text(wrong)  # computed once: what is kept for this job is believed
    next(Path(job.output.path).glob("*.parquet")).unlink()
    said = refusal(job)
    assert said.startswith(
        "engine.tensor_parallel: 2 ranks do not answer the start-up probe as one rank does: in float32"
    )
    assert said.endswith("engine.probe: false starts without asking.")
    off = replace(job, engine=replace(job.engine, probe=False))
    assert pipelines.run(off).totals["ok"] == 75
    assert kept.read_text() == wrong


in_int8 = pytest.mark.skipif(not int8.computes_int8(), reason="no exact int8 products on this processor")


def asked(folder: str, num_ranks: int = 1) -> probe.Agreement:
    """What a replica in int8 does before its first unit."""
    model = models.load_model(folder, dtype="int8", device="cpu", tensor_parallel=num_ranks)
    try:
        questions = probe.questions_for("int8")
        return probe.check_int8(probe.ask(model, questions), probe.reference(folder, None, 1, questions))
    finally:
        if num_ranks > 1:
            model.group.followers.close()  # type: ignore[union-attr]


@in_int8
@pytest.mark.parametrize(
    "architecture",
    [
        "BartForConditionalGeneration", "BartForSequenceClassification", "BartForQuestionAnswering",
        "BlenderbotForConditionalGeneration", "BlenderbotSmallForConditionalGeneration",
        "BloomForCausalLM", "BloomForTokenClassification",
    ],
)  # fmt: skip
def test_int8_that_is_near_float32_is_let_in(make_checkpoint, architecture) -> None:
    agreement = asked(make_checkpoint(architecture))
    assert 0 < agreement.logit_error < probe.INT8_BOUNDS.logit_error / 2
    assert agreement.equal_choices > 0.9


@in_int8
def test_ranks_in_int8_are_let_in(make_checkpoint) -> None:
    assert asked(make_checkpoint("BloomForCausalLM"), num_ranks=2).equal_choices > 0.9


def shifted(weight_FD: torch.Tensor) -> int8.Int8Weight:
    """Each output has the scale of its neighbour, and outputs differ in size as those of trained weights do."""
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True) / int8.LARGEST
    wrong_F = scale_F1[:, 0].roll(1) * torch.linspace(0.5, 2, len(scale_F1))
    return int8.packed((weight_FD / scale_F1).round().to(torch.int8), wrong_F)


def of_two_bits(weight_FD: torch.Tensor) -> int8.Int8Weight:
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True)
    return int8.packed((weight_FD / scale_F1).round().to(torch.int8), scale_F1[:, 0])


def not_finite(weight_FD: torch.Tensor) -> int8.Int8Weight:
    return int8.quantized(weight_FD * torch.nan)


@in_int8
@pytest.mark.parametrize("broken", [shifted, of_two_bits, not_finite])
@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BloomForCausalLM"])
def test_a_broken_quantization_is_refused(make_checkpoint, monkeypatch, architecture, broken) -> None:
    monkeypatch.setattr(memory, "quantized", broken)
    with pytest.raises(JobError) as caught:
        asked(make_checkpoint(architecture))
    said = str(caught.value)
    assert said.startswith("engine.dtype: int8 does not answer the start-up probe as float32 does: values are off by")
    assert "No unit was computed. Use engine.dtype: bfloat16 or float32 for this checkpoint" in said


@in_int8
@pytest.mark.usefixtures("ray_cluster")
def test_a_job_in_int8_is_another_job_and_is_refused_where_answers_differ(job) -> None:
    """Its checkpoint has weights so large that any rounding grows: int8 is off by 0.4 there."""
    exact = replace(job, engine=replace(job.engine, tensor_parallel=1))
    config = replace(exact, engine=replace(exact.engine, dtype="int8"))
    assert pipelines.plan(config).fingerprint != pipelines.plan(exact).fingerprint
    assert pipelines.plan(config).footprint.weight_bytes < pipelines.plan(exact).footprint.weight_bytes / 1.5
    said = refusal(config)
    assert said.startswith("engine.dtype: int8 does not answer the start-up probe as float32 does: values are off")
    unasked = replace(config, engine=replace(config.engine, probe=False))
    assert pipelines.run(unasked).agreement == {}


@in_int8
@pytest.mark.usefixtures("ray_cluster")
def test_a_job_in_int8_states_its_agreement(job) -> None:
    trained = Path(__file__).parents[3] / "examples" / "demo_models" / "docs-bart-mini"
    config = replace(job, model=str(trained), engine=replace(job.engine, tensor_parallel=1, dtype="int8"))
    agreement = pipelines.run(config).agreement
    assert 0 < agreement["int8_logit_error"] < probe.INT8_BOUNDS.logit_error / 2
    assert 0.9 < agreement["int8_equal_choices"] <= 1
    written = json.loads((Path(config.output.path) / "_batchloom" / "manifest.json").read_text())
    assert written["agreement"] == agreement


def test_banned_tokens_are_no_distance_and_few_choices_no_share() -> None:
    """A bias of -infinity made a sound model "off by nan"; of 32 positions 25 were "78 %"."""
    banned = -float("inf")
    expected = probe.Answers(((1.0, banned, 2.0, banned),), ((3,) * 32,))
    found = probe.Answers(((1.0, banned, 2.02, banned),), ((3,) * 25 + (4,) * 7,))
    agreement = probe.check_int8(found, expected)
    assert agreement.logit_error == pytest.approx(0.02 / 5**0.5)
    assert agreement.equal_choices == 25 / 32
    with pytest.raises(JobError, match=r"off by (inf|nan)"):
        probe.check_int8(replace(found, values=((1.0, 2.0, 2.0, banned),)), expected)
    with pytest.raises(JobError, match="78% of its tokens"):
        probe.check_int8(replace(found, choices=found.choices * 4), replace(expected, choices=expected.choices * 4))
