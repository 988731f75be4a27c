"""What a job says over its checkpoint: class, labels, strictness, settings that it is to do without."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchloom import models, pipelines
from batchloom.jobs.reports.assumption import Assumption
from batchloom.jobs.reports.dry_run import DryRun
from batchloom.jobs.reports.inspection import Inspection
from batchloom.models.errors import CheckpointError
from batchloom.pipelines.config import ModelOptions
from batchloom.pipelines.errors import ConfigError

WITHOUT = {
    "num_beams": 1, "max_length": 40, "min_length": None, "no_repeat_ngram_size": None, "forced_bos_token_id": None,
    "forced_eos_token_id": [],
}  # fmt: skip


@pytest.fixture
def model(checkpoint: str, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def classifier(model: Path) -> Path:
    """A classifier of two labels, as transformers 5 saves one: config.json does not name them."""
    tensors = load_file(model / "model.safetensors")
    for name, shape in {"dense": (32, 32), "out_proj": (2, 32)}.items():
        tensors[f"classification_head.{name}.weight"] = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        tensors[f"classification_head.{name}.bias"] = torch.zeros(shape[0])
    tensors.pop("final_logits_bias")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((model / "config.json").read_text())
    raw["architectures"] = ["BartForSequenceClassification"]
    (model / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if "label" not in k}))
    return model


def words_of(config) -> dict[str, str]:
    return DryRun.of(config, Assumption(), 100).words()


def test_plan_and_inspect_say_how_many_labels_were_counted(make_job, classifier: Path) -> None:
    config = make_job(model=str(classifier), task="text-classification", generation={})
    said = "config.json names no labels; the weights have 2: LABEL_0, LABEL_1."
    assert said in words_of(config)["Note"]
    assert said in Inspection.of(str(classifier)).words()["Note"]
    named = replace(config, model_options=ModelOptions(id2label={"0": "dull", "1": "bright"}))
    assert "Note" not in words_of(named)
    plan = pipelines.plan(named)
    assert plan.task.labels == ("dull", "bright")
    assert plan.fingerprint != pipelines.plan(config).fingerprint


def test_plan_names_tensors_that_nothing_reads_and_strict_refuses_them(make_job, classifier: Path) -> None:
    tensors = load_file(classifier / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.lora_A.weight"] = torch.zeros(4, 32)
    save_file(tensors, classifier / "model.safetensors", metadata={"format": "pt"})
    config = make_job(model=str(classifier), task="text-classification", generation={})
    assert "model.encoder.layers.0.fc1.lora_A.weight. Merge the adapter" in words_of(config)["Note"]
    with pytest.raises(CheckpointError, match=r"model_options.strict is true: 1 tensor of"):
        pipelines.plan(replace(config, model_options=ModelOptions(strict=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(num_labels=0), "num_labels: is 0"),
        (ModelOptions(id2label={"1": "a", "2": "b"}), "numbers its labels 1, 2, must be 0 to"),
        (ModelOptions(num_labels=3, id2label={"0": "a"}), "num_labels is 3, and id2label has 1"),
        (ModelOptions(architecture="BloomForCausalLM"), "is not one that a bart checkpoint can be loaded as"),
        (ModelOptions(architecture="BartForCausalLM"), "summarization needs one of"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(make_job, options: ModelOptions, message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        pipelines.plan(replace(make_job(), model_options=options))


def test_plan_shows_what_holds_where_a_job_does_without_the_checkpoints_settings(make_job) -> None:
    """The checkpoint's values came back without a word, and plan showed them."""
    config = make_job(generation=WITHOUT)
    held = pipelines.plan(config).generation
    assert held["forced_bos_token_id"] is None
    assert (held["forced_eos_token_id"], held["no_repeat_ngram_size"]) == ([], 0)
    assert "min_length" not in {name for name, value in held.items() if value is not None}
    lines = words_of(config)["Generation"].split("\n")
    assert {"forced_bos_token_id: null", "forced_eos_token_id: []", "no_repeat_ngram_size: 0"} <= set(lines)
    assert pipelines.plan(make_job(generation={"num_beams": 1})).generation["forced_bos_token_id"] == 0


@pytest.mark.usefixtures("ray_cluster")
def test_the_decoder_alone_answers_as_the_reference_without_the_checkpoints_settings(
    make_job, checkpoint: str, model: Path, output_table
) -> None:
    """Through Ray: the replica has the class that was planned, and no setting of the checkpoint comes back there."""
    transformers = pytest.importorskip("transformers")
    config = make_job(task="text-generation", generation=WITHOUT | {"max_length": None, "max_new_tokens": 5})
    config = replace(config, model_options=ModelOptions(architecture="BartForCausalLM"))
    config = replace(config, input=replace(config.input, limit=12))
    pipelines.run(config)
    table = output_table(config.output.path)
    # Of model.shared.weight alone the reference's embeddings are random, in transformers 5.23.
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    reference, told = transformers.BartForCausalLM.from_pretrained(model, output_loading_info=True)
    reference.eval()
    assert not told["missing_keys"]
    tokenizer = models.load_tokenizer(checkpoint)
    shards = output_table(config.input.paths[0])
    texts = dict(zip(shards["id"].to_pylist(), shards["text"].to_pylist(), strict=True))
    none = {"forced_bos_token_id": None, "forced_eos_token_id": None, "no_repeat_ngram_size": 0, "min_length": 0}
    for row, answer in zip(table["id"].to_pylist(), table["generated_text"].to_pylist(), strict=True):
        (prompt,) = tokenizer.encode_batch([texts[row]])
        settings = {"num_beams": 1, "max_new_tokens": 5, "length_penalty": 1.0, "early_stopping": False, **none}
        with torch.no_grad():
            said = reference.generate(torch.tensor([prompt]), use_cache=False, **settings)[0, len(prompt) :].tolist()
        assert answer == tokenizer.decode_batch([said])[0]
