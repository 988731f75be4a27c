import os
import time
from pathlib import Path

import pytest

from batchloom.jobs.job_file import JobFile, JobFileError
from batchloom.jobs.spec import parse_set


def read(tmp_path: Path, text: str) -> JobFile:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return JobFile.read(str(path))


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    file = read(tmp_path, "task: a\ninput:\n  paths:\n    - x\n  text_column: b\n")
    assert file.lines == {("task",): 1, ("input",): 2, ("input", "paths"): 3, ("input", "text_column"): 5}


def test_an_exponent_is_a_number_and_a_date_is_a_text(tmp_path: Path) -> None:
    """PyYAML follows YAML 1.1, which reads 1e-3 as a text and 2024-01-01 as a date."""
    assert read(tmp_path, "a: 1e-3\nb: 2024-01-01\nc: 1.5e+3\n").values == {"a": 0.001, "b": "2024-01-01", "c": 1500.0}


def test_an_empty_file_has_no_values(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing\n").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: a\n\tmodel: b", "line 2  not valid YAML: while scanning for the next token"),
        ("task: a\n\tmodel: b", "YAML is indented with spaces."),
        ("task: a\npaths: [*.parquet]", "line 2  not valid YAML: while scanning an alias"),
        ("task: a\npaths: [*.parquet]", "A path that starts with * needs quotes."),
        ("task: a: b", "A text that holds ': ' needs quotes"),
        ("seed: 1\ntask: a\nseed: 2", "line 3  not valid YAML: the key seed stands here a second time."),
        ("\n- task", "line 2  not valid YAML: a job file is a mapping such as 'task: summarization'."),
        ("task: a\n? [b]\n: c", "line 2  not valid YAML: a key is a text, found a list."),
        ("task: [a", "not valid YAML: while parsing a flow sequence"),
        ("task: a\x00", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nope.yaml"
    with pytest.raises(JobFileError) as caught:
        JobFile.read(str(missing))
    assert str(caught.value) == (
        f"{missing} has 1 problem:\n  the job file cannot be read: there is no such file. Check the path, or write "
        f"one: batchloom init TASK > {missing}"
    )
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobFileError, match="it is not UTF-8 text"):
        JobFile.read(str(tmp_path / "binary.yaml"))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 17  not valid YAML: with its aliases it holds more than 200,000 values"),
        (MERGES, "with its aliases it holds more than 200,000 values"),
        ("a: &a [*a]", "line 1  not valid YAML: it holds itself by an alias"),
        ("a: &a {b: *a}", "it holds itself by an alias"),
        ("&a a: {<<: *a}", "not valid YAML"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "it is nested too deep"),
        ("a: " + "[" * 60 + "]" * 60, "line 1  not valid YAML: it is nested too deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(1000)), "it is nested too deep"),
        ("a: !!int x", "line 1  not valid YAML: it cannot be read (invalid literal for int()"),
        ("a: !!bool x", "it cannot be read"),
        ("a: !!timestamp x", "it cannot be read"),
        (f"a: {'9' * 5000}", "it cannot be read"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        (f"a: {'x' * (1 << 20)}", "the job file cannot be read: it is larger than 1 MiB"),
    ],
)
def test_a_file_that_takes_more_than_its_size_is_refused_within_seconds(
    tmp_path: Path, text: str, message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert time.monotonic() - started < 5


def test_aliases_and_merges_of_a_usual_size_are_read(tmp_path: Path) -> None:
    text = "engine: &e {device: cpu}\nother: {<<: *e, dtype: auto}\npaths: [&p a, *p]\n"
    assert read(tmp_path, text).values["other"] == {"device": "cpu", "dtype": "auto"}


def test_a_pipe_and_a_device_are_no_job_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), Path("/dev/urandom")):
        with pytest.raises(JobFileError, match="it is a pipe or a device; save it as a file"):
            JobFile.read(str(path))
    for path, reason in ((tmp_path, r"it is a folder\. Name the job file"), (Path("nul\0"), "embedded null byte")):
        with pytest.raises(JobFileError, match=reason):
            JobFile.read(str(path))


def test_a_value_of_the_command_line_is_bounded_as_well() -> None:
    for value in ("&a [*a]", "[" * 5000):
        with pytest.raises(JobFileError, match="is not valid YAML"):
            parse_set(f"seed={value}")


def test_a_missing_file_is_said_with_the_folder_that_was_looked_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobFileError, match=f"there is no such file in {tmp_path}. Check the path"):
        JobFile.read("nope.yaml")
