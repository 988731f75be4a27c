"""`init`, `schema` and `inspect`: what helps to write a job file is what `run` takes."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from batchloom.jobs import job_guide, spec
from batchloom.pipelines.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Any]


@pytest.mark.parametrize("task", TASKS)
def test_a_job_file_to_begin_with_is_a_job_and_its_comments_are_the_defaults(tmp_path: Path, task: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(job_guide.template(task))
    job = spec.load(str(path))
    assert job.task == task
    jsonschema.validate(yaml.safe_load(path.read_text()), job_guide.schema())
    path.write_text(re.sub(r"^( *)#(\w+:)", r"\1\2", job_guide.template(task), flags=re.MULTILINE))
    assert spec.load(str(path)) == job
    assert set(yaml.safe_load(path.read_text())["engine"]) == set(asdict(job)["engine"])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_takes_every_example(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), job_guide.schema())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "sumarization"),
        ("engine", {"dtyp": "float32"}),
        ("engine", {"dtype": "int4"}),
        ("input", {"paths": "a"}),
    ],
)
def test_the_schema_refuses_what_a_job_is_refused_for(key: str, value: object) -> None:
    job = yaml.safe_load(job_guide.template("summarization"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, key: value}, job_guide.schema())


def test_every_key_is_explained() -> None:
    schema = job_guide.schema()
    places = [schema, *schema["$defs"].values()]
    silent = [
        name for place in places for name, held in place.get("properties", {}).items() if not held.get("description")
    ]
    assert silent == []
    assert "None" not in json.dumps([list(held.values()) for place in places for held in place["properties"].values()])


def test_commands_print_a_job_file_and_its_schema(batchloom: Run) -> None:
    said = batchloom("init", "summarization")
    assert said.code == 0
    assert yaml.safe_load(said.out)["task"] == "summarization"
    assert json.loads(batchloom("schema").out) == job_guide.schema()
    said = batchloom("init", "sumarization")
    assert said.code == 2
    assert said.err.startswith(
        "Error: There is no task 'sumarization'. Choose one of: summarization, text-generation, "
    )


def test_a_checkpoint_is_described_without_its_weights(batchloom: Run, checkpoint: str, tmp_path: Path) -> None:
    (told,) = batchloom("inspect", checkpoint, "--json").json
    assert told["architecture"] == "BartForConditionalGeneration"
    assert told["weight_bytes_of_rank"]["1"]["float32"] == 4 * told["num_parameters"]
    said = batchloom("inspect", checkpoint).out
    assert re.search(rf"^Model +bart, {told['num_parameters']:,} parameters in float32$", said, re.MULTILINE)
    assert re.search(
        r"^Class +BartForConditionalGeneration\. Also: .*BartForSequenceClassification", said, re.MULTILINE
    )
    said = batchloom("inspect", tmp_path)
    assert said.code == 2
    assert str(tmp_path) in said.err
