from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchloom.jobs import spec
from batchloom.jobs.job_file import JobFileError
from batchloom.pipelines.config import EngineConfig, InputConfig, JobConfig, OutputConfig

WHOLE = {"task": "summarization", "model": "m", "input": {"paths": ["a.parquet"]}, "output": {"path": "out"}}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(text: str | dict[str, Any], *sets: str) -> JobConfig:
        path = tmp_path / "job.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        return spec.load(str(path), [spec.parse_set(one) for one in sets])

    return load


@pytest.fixture
def complaints(load: Any) -> Any:
    def complaints(text: str | dict[str, Any], *sets: str) -> list[str]:
        with pytest.raises(JobFileError) as caught:
            load(text, *sets)
        _, *lines = str(caught.value).splitlines()
        return [" ".join(line.split()) for line in lines]

    return complaints


def test_defaults_are_those_of_the_config(load: Any) -> None:
    assert load(WHOLE) == JobConfig(
        task="summarization", model="m", input=InputConfig(paths=("a.parquet",)), output=OutputConfig(path="out")
    )


def test_all_problems_come_at_once_in_the_order_of_the_file(complaints: Any) -> None:
    text = """\
task: summarisation
model: m
text_column: body
input:
  paths: a.parquet
  text_colum: body
output: {path: 3, mode: resme}
engine: {max_batch_tokens: many, replicas: {max: true}}
seed: 1.5
generation: [1]
limits:
"""
    assert complaints(text, "output.path.x=1", "input.keep_columns=[1]") == [
        "line 1 task: there is no task 'summarisation'. Did you mean summarization?",
        "line 3 text_column: unknown key. It is called input.text_column.",
        "line 5 input.paths: needs a list, found the text 'a.parquet'. Write [a.parquet].",
        "line 6 input.text_colum: unknown key. Did you mean text_column?",
        "line 7 output.path: needs a text, found the whole number 3. Put it in quotes.",
        "line 7 output.mode: the text 'resme' is not one of resume, overwrite or error.",
        "line 8 engine.replicas.max: needs a whole number, found true.",
        "line 8 engine.max_batch_tokens: needs a whole number, found the text 'many'.",
        "line 9 seed: needs a whole number, found the number 1.5.",
        "line 10 generation: needs keys with values, found a list.",
        "line 11 limits: needs keys with values, found nothing. Leave the key out to get its default.",
        "--set input.keep_columns input.keep_columns[0]: needs a text, found the whole number 1. Put it in quotes.",
        "--set output.path.x output.path holds the whole number 3 and no keys, so nothing can be set in it.",
    ]


def test_what_is_missing_is_named_with_its_option(complaints: Any) -> None:
    assert complaints("input: {text_column: a}") == [
        "line 1 input.paths: required and not there. Add the key, or give --input.",
        "task: required and not there. Add the key, or give --task.",
        "model: required and not there. Add the key, or give --model.",
        "output.path: required and not there. Add the key, or give --output.",
    ]


def test_a_default_is_promised_only_where_there_is_one(complaints: Any) -> None:
    assert complaints(WHOLE | {"task": None, "seed": None}) == [
        "line 1 task: needs a text, found nothing.",
        "line 8 seed: needs a whole number, found nothing. Leave the key out to get its default.",
    ]


def test_an_unknown_key_that_resembles_none_lists_what_there_is(complaints: Any) -> None:
    assert complaints(WHOLE | {"output": {"path": "out", "zzz": 1}}) == [
        "line 8 output.zzz: unknown key. There are: path, mode, rows_per_part, format, partition_by, "
        "compression, row_group_rows, statistics, storage_options."
    ]


def test_how_files_are_written_is_checked(complaints: Any) -> None:
    output = {"path": "out", "compression": "brotli", "row_group_rows": "all", "statistics": 1}
    output |= {"format": "csv", "partition_by": "lang"}
    assert complaints(WHOLE | {"output": output}) == [
        "line 8 output.compression: the text 'brotli' is not one of zstd, snappy, gzip, lz4 or none.",
        "line 9 output.row_group_rows: needs a whole number, found the text 'all'.",
        "line 10 output.statistics: needs true or false, found the whole number 1.",
        "line 11 output.format: the text 'csv' is not one of parquet or jsonl.",
        "line 12 output.partition_by: needs a list, found the text 'lang'. Write [lang].",
    ]


def test_set_wins_over_the_file_and_is_read_as_yaml(load: Any) -> None:
    config = load(
        WHOLE | {"generation": {"num_beams": 4, "length_penalty": 2.0}},
        "generation.num_beams=1",
        "engine.replicas.max=3",
        "input.paths=[x, y=z]",
        "limits.max_error_rate=1e-2",
    )
    assert config.generation == {"num_beams": 1, "length_penalty": 2.0}
    assert config.engine == EngineConfig(replicas=type(config.engine.replicas)(max=3))
    assert config.input.paths == ("x", "y=z")
    assert config.limits.max_error_rate == 0.01


def test_set_fills_a_section_that_was_left_empty(load: Any) -> None:
    assert load(yaml.safe_dump(WHOLE) + "generation:\n", "generation.num_beams=2").generation == {"num_beams": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_beams", "write it as key=value, such as generation.num_beams=1."),
        ("=1", "write it as key=value"),
        ("a..b=1", "write it as key=value"),
        ("a=[1", "the value '[1' is not valid YAML; quote it."),
    ],
)
def test_a_set_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(JobFileError) as caught:
        spec.parse_set(text)
    assert message in str(caught.value)


def test_a_whole_number_does_for_a_number_and_nothing_else_does(load: Any, complaints: Any) -> None:
    assert load(WHOLE, "limits.max_error_rate=0").limits.max_error_rate == 0.0
    assert complaints(WHOLE, "limits.max_error_rate='0'") == [
        "--set limits.max_error_rate limits.max_error_rate: needs a number, found the text '0'."
    ]


options = st.dictionaries(
    st.text(min_size=1), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), max_size=4
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other processes decide the time
@example(generation={"1.e-3": "0E0"}, keep=("0E0", "1e5", "2024-01-01"), seed=0)  # numbers and dates, unless quoted
@given(generation=options, keep=st.none() | st.lists(st.text(), max_size=3).map(tuple), seed=st.integers(0, 2**63))
def test_a_resolved_job_written_out_is_the_same_job(
    tmp_path_factory: pytest.TempPathFactory, generation: dict[str, Any], keep: tuple[str, ...] | None, seed: int
) -> None:
    config = JobConfig(
        task="summarization",
        model="m",
        input=InputConfig(paths=("a",), keep_columns=keep),
        output=OutputConfig(path="out"),
        generation=generation,
        seed=seed,
    )
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(spec.to_yaml(asdict(config)), encoding="utf-8")
    assert spec.load(str(path)) == config
    assert spec.from_record(asdict(config), "record") == config


def test_a_trial_has_an_output_beside_that_of_its_job() -> None:
    job = {
        "task": "perplexity",
        "model": "m",
        "input": {"paths": ["in"], "limit": 100},
        "output": {"path": "s3://b/out/"},
    }
    assert spec.as_trial(spec.from_mapping(job)).output.path == "s3://b/out-limit-100"
