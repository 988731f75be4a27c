"""What cannot work is refused by plan, in seconds: not row by row, and not after minutes of loading."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from batchloom import pipelines
from batchloom.jobs.reports.assumption import Assumption
from batchloom.jobs.reports.dry_run import DryRun
from batchloom.models.errors import CheckpointError, TokenizerError
from batchloom.pipelines.config import ReplicasConfig
from batchloom.pipelines.errors import ConfigError


@pytest.fixture
def model(checkpoint: str, tmp_path: Path) -> Path:
    """A copy of the checkpoint of 128 positions and about 400 tokens."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def configure(model: Path, name: str, **changes: object) -> None:
    raw = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(raw | changes))


def test_num_beams_without_end_is_refused_with_what_they_would_take(make_job) -> None:
    with pytest.raises(ConfigError, match=r"num_beams = 100000 asks for more sequences than the 1024 .* logits .* GB"):
        pipelines.plan(make_job(generation={"num_beams": 100_000}))
    sampling = {"num_beams": 1, "do_sample": True, "num_return_sequences": 5000}
    with pytest.raises(ConfigError, match="num_return_sequences = 5000 asks for more sequences"):
        pipelines.plan(make_job(task="text2text-generation", generation=sampling))
    assert pipelines.plan(make_job(generation={"num_beams": 1024, "max_length": 20})).generation["num_beams"] == 1024


def test_a_hub_name_without_its_scheme_gets_a_hint(make_job) -> None:
    with pytest.raises(
        ConfigError, match=r"no folder facebook/bart-large-cnn here\. Did you mean hf://facebook/bart-larg"
    ):
        pipelines.plan(make_job(model="facebook/bart-large-cnn"))


@pytest.mark.parametrize("asked", [{"max_length": 1000}, {"max_new_tokens": 999}])
def test_more_tokens_than_the_decoder_has_positions_are_planned_and_said(make_job, asked) -> None:
    plan = pipelines.plan(make_job(generation=asked))
    (note,) = plan.notes
    name, value = next(iter(asked.items()))
    assert note.startswith(f"generation.{name} = {value} is more than the decoder's 128 positions")
    assert plan.generation[name] == value
    assert DryRun.of(make_job(generation=asked), Assumption(), 100).words()["Note"] == note
    assert pipelines.plan(make_job(generation={"max_length": 129})).notes == ()
    assert pipelines.plan(make_job(generation={"max_new_tokens": 128})).notes == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_length": 1000, "min_length": 130}, "min_length = 130 .* 128 positions.* Set it to 129 at most"),
        ({"max_new_tokens": 1000, "min_new_tokens": 129}, "min_new_tokens = 129 .* Set it to 128 at most"),
        ({"max_length": 1, "min_length": 0}, "max_length = 1 leaves no room after the token"),
    ],
)
def test_lengths_that_no_row_can_have_are_refused(make_job, asked, message) -> None:
    with pytest.raises(ConfigError, match=message):
        pipelines.plan(make_job(generation=asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus_per_replica": 0.0}, "engine.gpus_per_replica: is 0, must be above 0 and at most 1."),
        ({"gpus_per_replica": math.nan}, "engine.gpus_per_replica: is nan, must be above 0 and at most 1."),
        ({"gpus_per_replica": 2.0}, "at most 1. engine.tensor_parallel is for models that need more than one GPU."),
        ({"gpus_per_replica": 0.5, "tensor_parallel": 2}, "is 0.5, and each of 2 ranks (engine.tensor_parallel) has a"),
        ({"gpus_per_replica": 0.5, "device": "cpu"}, "is 0.5, and engine.device: cpu uses no GPU. Leave one out."),
        ({"dtype": "int8", "device": "cuda"}, "engine.dtype: is int8, which is computed on CPUs alone, and engine.de"),
        ({"replicas": ReplicasConfig(wait_minutes=-1.0)}, "engine.replicas.wait_minutes: is -1.0, must be 0 or more."),
    ],
)
def test_shares_of_gpus_and_waits_that_cannot_be_are_refused(make_job, asked, message) -> None:
    job = make_job()
    with pytest.raises(ConfigError, match=re.escape(message)):
        pipelines.plan(replace(job, engine=replace(job.engine, **asked)))
    rehearsal = replace(job.engine, gpus_per_replica=0.5, device="cpu", reserve_gpus=True)
    pipelines.plan(replace(job, engine=rehearsal))


def test_a_decoder_without_a_token_to_start_from_is_refused(make_job, model) -> None:
    for name in ("config.json", "generation_config.json"):
        configure(model, name, decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(ConfigError, match="no token to start from: set decoder_start_token_id"):
        pipelines.plan(make_job(model=str(model)))
    pipelines.plan(make_job(model=str(model), generation={"decoder_start_token_id": 2}))


def test_config_that_the_weights_do_not_fit_is_refused(make_job, model) -> None:
    configure(model, "config.json", encoder_layers=10**9)
    with pytest.raises(CheckpointError, match=r"encoder\.layers should be 1000000000 layers; the files have 2"):
        pipelines.plan(make_job(model=str(model)))


def test_weights_that_are_cut_are_refused(make_job, model) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        pipelines.plan(make_job(model=str(model)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"vocab.json": None}, "there is no tokenizer"),
        ({"merges.txt": None}, "there is no tokenizer"),
        ({"vocab.json": "{"}, "vocab.json is not JSON"),
        ({"vocab.json": "[" * 100_000}, "vocab.json nests deeper"),
        ({"vocab.json": '{"a": "b"}'}, "tokenizer"),
        ({"merges.txt": "a b c\n"}, "merges.txt:1: expected two tokens"),
        ({"tokenizer.json": '{"model": 5}'}, "tokenizer.json is not readable"),
        ({"tokenizer.json": "[" * 100_000}, "tokenizer.json"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": [1]}'}, "hold what no tokenizer does"),
    ],
    ids=str,
)
def test_a_tokenizer_that_is_missing_or_does_not_parse_is_refused(make_job, model, damage, message) -> None:
    for name, content in damage.items():
        if content is None:
            (model / name).unlink()
        else:
            (model / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        pipelines.plan(make_job(model=str(model)))
