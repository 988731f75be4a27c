"""What verify must find: a part deleted, cut short, altered or added, and an input that is not what it was."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import InputConfig, JobConfig, OutputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.sealed import FOOTER_KEY, sealed

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def job(checkpoint: str, make_corpus, tmp_path_factory) -> JobConfig:
    folder = tmp_path_factory.mktemp("finished")
    return JobConfig(
        task="summarization",
        model=checkpoint,
        input=InputConfig(paths=(str(make_corpus(folder / "corpus")),), rows_per_unit=10),
        output=OutputConfig(path=str(folder / "out"), rows_per_part=20),
        generation={"num_beams": 1, "max_length": 8},
    )


@pytest.fixture(scope="module")
def finished(job: JobConfig) -> Path:
    """A folder with corpus/ and the output of one job over it, out/."""
    folder = Path(job.output.path).parent
    pipelines.run(job)
    assert pipelines.verify(job.output.path).ok
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the output, to be harmed."""
    return shutil.copytree(finished / "out", tmp_path / "out")


@pytest.fixture
def noted(output: Path, job: JobConfig) -> Path:
    """A copy whose records have the times of the copies, so that its parts are believed."""
    (output / "_batchloom" / "manifest.json").unlink()
    pipelines.run(replace(job, output=replace(job.output, path=str(output))))
    return output


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


@pytest.mark.parametrize("name", ["notes.txt", "sub/x.parquet", "_x.parquet", ".h.parquet"])
def test_a_file_that_is_no_part_is_named(output: Path, name: str) -> None:
    """A reader of the whole folder would stumble over it."""
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_bytes(b"")
    assert only_problem(output) == f"{name}: it is in the output and not in the manifest"
    assert pipelines.verify(str(output)).advice == ["Move files that are not in the manifest out of the folder."]


def test_damage_of_each_kind_is_said_with_what_to_do_and_a_whole_output_without(output: Path, finished: Path) -> None:
    """What was wrong was said, and not what to do next."""
    assert pipelines.verify(str(output)).advice == []
    part = sorted(output.glob("*.parquet"))[0]
    os.truncate(part, part.stat().st_size - 50)
    assert [advice.partition(":")[0] for advice in pipelines.verify(str(output)).advice] == ["Run the job again"]
    corpus, elsewhere = finished / "corpus", finished / "elsewhere"
    corpus.rename(elsewhere)
    try:
        advice = pipelines.verify(str(output)).advice
    finally:
        elsewhere.rename(corpus)
    assert [one.split(" that")[0].split(":")[0] for one in advice] == ["Bring input files back", "Run the job again"]


def edit_manifest(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = output / "_batchloom" / "manifest.json"
    values = json.loads(manifest.read_text())
    change(values)
    manifest.write_text(json.dumps(values))


def edit_records(output: Path, change: Callable[[list[PartRecord]], list[PartRecord]]) -> None:
    """Change the records, and the manifest's totals and hash with them."""
    records = output / "_batchloom" / "parts.pq"
    register = Register.of(change(list(Register.read(records.read_bytes()))))
    records.write_bytes(register.to_bytes())
    totals = register.totals()
    edit_manifest(output, lambda values: values["totals"].update(totals))
    edit_manifest(output, lambda values: values.update(parts_sha256=hashlib.sha256(records.read_bytes()).hexdigest()))


def test_records_with_other_figures_than_their_parts_are_found_by_reading_all(noted: Path) -> None:
    """By names, sizes and versions alone they cannot be."""

    def add_tokens(records: list[PartRecord]) -> list[PartRecord]:
        first, *others = records
        return [replace(first, num_input_tokens=first.num_input_tokens + 5), *others]

    edit_records(noted, add_tokens)
    assert pipelines.verify(str(noted)).ok
    (problem,) = pipelines.verify(str(noted), deep=pipelines.deep_check).problems
    assert problem.endswith("its footer tells of other figures than the manifest")


def test_reading_all_finds_what_sizes_and_versions_do_not_tell(noted: Path) -> None:
    part = sorted(noted.glob("*.parquet"))[1]
    times = (part.stat().st_atime_ns, part.stat().st_mtime_ns)
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=times)
    assert pipelines.verify(str(noted)).ok
    (problem,) = pipelines.verify(str(noted), deep=pipelines.deep_check).problems
    assert problem == f"{part.name}: its bytes are not the ones that were written: its seal is broken"


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"[]"])
def test_records_that_are_gone_or_damaged_are_named(output: Path, content: bytes | None) -> None:
    records = output / "_batchloom" / "parts.pq"
    records.unlink() if content is None else records.write_bytes(content)
    said = r"is missing\. Remove .*manifest\.json" if content is None else "is not as batchloom wrote it"
    with pytest.raises(OutputError, match=rf"parts\.pq {said}"):
        pipelines.verify(str(output))


def test_error_kinds_are_recounted(output: Path) -> None:
    edit_manifest(output, lambda values: values["errors_by_kind"].update(null_text=3))
    assert only_problem(output) == "manifest: errors_by_kind is {'null_text': 3}, and its parts sum to {}"


@pytest.mark.parametrize("content", [b'{"parts": [', b"[]", b"\xff", b"5", b"[" * 100_000])
def test_a_manifest_that_is_damaged_is_named(output: Path, content: bytes) -> None:
    (output / "_batchloom" / "manifest.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"manifest\.json is not as batchloom wrote it"):
        pipelines.verify(str(output))


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "totals.rows": lambda values: values["totals"].update(rows=None),
    "errors_by_kind": lambda values: values.update(errors_by_kind=[]),
    "fingerprint": lambda values: values.update(fingerprint=5),
    "layout": lambda values: values.pop("layout"),
    "parts_sha256": lambda values: values.update(parts_sha256=None),
    "timing.wall_seconds": lambda values: values["timing"].update(wall_seconds="long"),
    "job": lambda values: values.update(job=None),
    "job.input": lambda values: values["job"].pop("input"),
    "job.input: paths": lambda values: values["job"]["input"].update(paths=5),
    "job.input: missing": lambda values: values["job"]["input"].update(missing="forget"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_with_a_value_of_a_wrong_type_is_named(output: Path, name: str) -> None:
    """They were tracebacks."""
    edit_manifest(output, WRONG[name])
    with pytest.raises(OutputError, match=rf"manifest\.json is not as batchloom wrote it: {re.escape(name)}"):
        pipelines.verify(str(output))


def test_a_job_record_that_is_damaged_or_gone_decides_nothing(output: Path) -> None:
    record = output / "_batchloom" / "job.json"
    record.write_bytes(b"[")
    assert pipelines.verify(str(output)).ok
    record.unlink()
    assert pipelines.verify(str(output)).ok


def test_a_part_that_is_a_folder_is_named(output: Path) -> None:
    part = sorted(output.glob("*.parquet"))[1]
    part.unlink()
    part.mkdir()
    assert part.name in only_problem(output)


def test_a_part_that_is_copied_over_another_one_is_named(output: Path) -> None:
    first, second, *_ = sorted(output.glob("*.parquet"))
    shutil.copy(first, second)
    assert second.name in only_problem(output)


def test_a_part_that_the_records_name_twice_is_found(output: Path) -> None:
    """The sums agreed, as did the names of parts and units, and one of the parts was no longer counted."""

    def name_the_first_for_the_second(records: list[PartRecord]) -> list[PartRecord]:
        first, second, *others = records
        (output / second.part).unlink()
        return [first, first, *others]

    edit_records(output, name_the_first_for_the_second)
    problems = pipelines.verify(str(output)).problems
    assert any(" 2 times" in problem for problem in problems)
    assert any("have no part" in problem for problem in problems)


def test_a_record_with_the_rows_of_another_part_is_found(output: Path) -> None:
    def shift(records: list[PartRecord]) -> list[PartRecord]:
        first, *others = records
        (span,) = first.spans
        return [replace(first, spans=(replace(span, start=span.start + 1, stop=span.stop + 1),)), *others]

    edit_records(output, shift)
    problems = " ".join(pipelines.verify(str(output)).problems)
    assert "rows 0 to 1 of a.parquet have no part" in problems
    assert "holds rows of a.parquet that another part holds as well" in problems


def test_a_fingerprint_that_is_not_of_its_components_is_found(output: Path) -> None:
    edit_manifest(output, lambda values: values["fingerprint_of"].update(seed=1))
    assert only_problem(output) == "manifest: its fingerprint is not that of fingerprint_of"


def test_figures_that_all_records_agree_on_are_held_against_the_rows(output: Path) -> None:
    """A part with a wrong account, sealed and with a record that repeats it: its columns tell."""
    part = sorted(output.glob("*.parquet"))[0]
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    footer["counts"]["num_input_tokens"] += 5
    part.write_bytes(sealed(pq.read_table(part), footer))
    content = part.read_bytes()
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def repeat(records: list[PartRecord]) -> list[PartRecord]:
        return [
            replace(record, **told, num_input_tokens=record.num_input_tokens + 5)
            if record.part == part.name
            else record
            for record in records
        ]

    edit_records(output, repeat)
    assert "num_input_tokens is " in only_problem(output)


def test_answers_to_a_deleted_input_are_kept_and_told(output: Path, finished: Path) -> None:
    """As a rolling archive has it: verify says what it cannot compare any more, and does not fail."""
    shard = finished / "corpus" / "b.parquet"
    content, times = shard.read_bytes(), (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    shard.unlink()
    try:
        assert "are not there any more" in " ".join(pipelines.verify(str(output)).problems)
        edit_manifest(output, lambda values: values["job"]["input"].update(missing="keep"))
        verification = pipelines.verify(str(output))
        assert verification.ok
        assert verification.num_input_rows == 50
        (note,) = verification.notes
        assert note.startswith("b.parquet was deleted: the answers to 25 of its rows are kept")
    finally:
        shard.write_bytes(content)
        os.utime(shard, ns=times)
    assert pipelines.verify(str(output)).notes == []
