"""What verify must find: a part deleted, cut short, altered or added, and an input that is not what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import InputConfig, JobConfig, OutputConfig
from batchloom.pipelines.errors import OutputError

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def finished(checkpoint: str, make_corpus, tmp_path_factory) -> Path:
    """A folder with corpus/ and the output of one job over it, out/."""
    folder = tmp_path_factory.mktemp("finished")
    job = JobConfig(
        task="summarization",
        model=checkpoint,
        input=InputConfig(paths=(str(make_corpus(folder / "corpus")),), rows_per_unit=10),
        output=OutputConfig(path=str(folder / "out")),
        generation={"num_beams": 1, "max_length": 8},
    )
    pipelines.run(job)
    assert pipelines.verify(job.output.path).ok
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the output, to be harmed."""
    return shutil.copytree(finished / "out", tmp_path / "out")


def only_problem(output: Path) -> str:
    verification = pipelines.verify(str(output))
    assert len(verification.problems) == 1, verification.problems
    return verification.problems[0]


def test_a_whole_output_is_counted(output: Path) -> None:
    verification = pipelines.verify(str(output))
    assert (verification.num_rows, verification.num_input_rows, verification.num_errors) == (75, 75, 0)
    assert verification.num_parts == len(list(output.glob("*.parquet")))


def test_a_deleted_part_is_named(output: Path) -> None:
    part = sorted(output.glob("*.parquet"))[1]
    part.unlink()
    assert part.name in only_problem(output)


def test_a_part_cut_short_is_named(output: Path) -> None:
    part = sorted(output.glob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-1])
    assert part.name in only_problem(output)


def test_an_altered_part_is_named_even_if_it_is_valid_parquet_of_the_same_size(output: Path) -> None:
    part = sorted(output.glob("*.parquet"))[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    assert part.name in only_problem(output)


def test_an_added_part_is_named(output: Path) -> None:
    part = sorted(output.glob("*.parquet"))[1]
    (output / "copy.parquet").write_bytes(part.read_bytes())
    assert "copy.parquet" in only_problem(output)


def test_an_input_that_has_changed_is_named(output: Path, finished: Path) -> None:
    added = finished / "corpus" / "d.parquet"
    pq.write_table(pa.table({"id": [75], "text": ["new"], "note": ["x"]}), added)
    try:
        assert "rows 0 to 1 of d.parquet have no part" in only_problem(output)
    finally:
        added.unlink()


def test_an_unfinished_output_is_no_success(output: Path) -> None:
    (output / "_batchloom" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="not finished"):
        pipelines.verify(str(output))


def test_a_folder_that_is_no_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no batchloom output"):
        pipelines.verify(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["notes.txt", "sub/x.parquet"])
def test_a_file_that_is_no_part_is_named(output: Path, name: str) -> None:
    """A reader of the whole folder would stumble over it."""
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_bytes(b"")
    assert only_problem(output) == f"{name}: it is in the output and not in the manifest"


def edit_manifest(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = output / "_batchloom" / "manifest.json"
    values = json.loads(manifest.read_text())
    change(values)
    manifest.write_text(json.dumps(values))


def test_a_manifest_with_other_figures_than_its_parts_is_found(output: Path) -> None:
    def add_tokens(values: dict[str, Any]) -> None:
        values["parts"][0]["num_input_tokens"] += 5
        values["totals"]["input_tokens"] += 5

    edit_manifest(output, add_tokens)
    assert only_problem(output).endswith("its footer tells of other figures than the manifest")


def test_error_kinds_are_recounted(output: Path) -> None:
    edit_manifest(output, lambda values: values["errors_by_kind"].update(null_text=3))
    assert only_problem(output) == "manifest: errors_by_kind is {'null_text': 3}, and its parts sum to {}"


@pytest.mark.parametrize("content", [b'{"parts": [', b"[]", b"\xff"])
@pytest.mark.parametrize("name", ["manifest.json", "job.json"])
def test_a_record_that_is_damaged_is_named(output: Path, name: str, content: bytes) -> None:
    (output / "_batchloom" / name).write_bytes(content)
    with pytest.raises(OutputError, match=rf"{name} is not as batchloom wrote it"):
        pipelines.verify(str(output))
