"""Outputs in folders by partition: parts of one folder each, and what a later run and verify make of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.running.driver import Todo
from batchloom.pipelines.running.retry import Retry
from batchloom.pipelines.running.stream import assembler
from batchloom.pipelines.stages.assemble import Order
from batchloom.pipelines.stores.storage import Store
from tests.forms import write
from tests.pipelines.finished import finish, summaries

FOLDERS = ("day=1/lang=en", "day=1/lang=d%2Fe", "day=2/lang=en")


@pytest.fixture(params=[{}, {"format": "jsonl"}], ids=["parquet", "jsonl"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> JobConfig:
    """Three small files of two languages, that would be one part."""
    for number, folder in enumerate(FOLDERS):
        (tmp_path / "in" / folder).mkdir(parents=True)
        rows = pa.table({"id": range(3 * number, 3 * number + 3), "text": ["text"] * 3})
        write(rows, tmp_path / "in" / folder, "a", ".parquet")
    return summaries([str(tmp_path / "in")], tmp_path / "out", **request.param, partition_by=("lang",))


def changed(config: JobConfig, **how: Any) -> JobConfig:
    return replace(config, output=replace(config.output, **how))


def written(config: JobConfig) -> dict[str, bytes]:
    root = Path(config.output.path)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("part-*")}


def rewrite(config: JobConfig) -> int:
    """Write again what is of another layout, as the tasks of a job do, and return how many parts."""
    job = pipelines.plan(config)
    todo = Todo.of(job, Done.find(job, ledger.look(job.output)), Retry.none())
    assert todo.num_units == 0, "nothing is computed"
    for pending in todo.pending:
        sources = sources_of(pending.part.spans, job.shards_by_name)
        assembler(job)(Order(pending.part, sources, pending.saved, pending.earlier))
    return len(todo.pending)


def test_a_part_has_rows_of_one_folder_though_files_of_others_lie_between(config) -> None:
    manifest = finish(config)
    assert sorted(record.part.partition("/")[0] for record in manifest.parts) == ["lang=d%2Fe", "lang=en"]
    assert sorted(record.num_rows for record in manifest.parts) == [3, 6]
    assert pipelines.verify(config.output.path).ok
    columns = pipelines.plan(config).columns.names
    assert columns[:2] == ["id", "day"]
    assert "lang" not in columns


def test_all_is_done_where_records_are_gone(config) -> None:
    finish(config)
    for name in ("manifest.json", "parts.pq", "job.json"):
        (Path(config.output.path) / "_batchloom" / name).unlink()
    assert rewrite(config) == 0


def test_a_part_that_was_moved_to_another_folder_is_found(config) -> None:
    finish(config)
    root = Path(config.output.path)
    (part,) = root.glob("lang=en/part-*")
    part.rename(root / "lang=d%2Fe" / part.name)
    problems = pipelines.verify(config.output.path).problems
    assert any("it is missing (6 rows" in problem for problem in problems)
    assert any("it is in the output and not in the manifest" in problem for problem in problems)
    job = pipelines.plan(config)
    with pytest.raises(OutputError, match=r"its footer is that of lang=en/part-|there is no _batchloom/seals"):
        Done.find(job, ledger.look(job.output))


def test_strangers_files_in_folders_are_in_the_way(config) -> None:
    finish(config)
    job, root = pipelines.plan(config), Path(config.output.path)
    for name in (f"lang=en/notes{config.output.ending}", "lang=en/notes.txt", f"lang=fr/x{config.output.ending}"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
        with pytest.raises(OutputError, match=rf"no batchloom job wrote \({name}\)"):
            ownership.refuse_foreign(job, ledger.look(job.output))
        (root / name).unlink()
    ownership.refuse_foreign(job, ledger.look(job.output))


def test_folders_may_be_given_up_and_taken_where_no_part_is_in_several(config, tmp_path) -> None:
    finish(config)
    before = written(config)
    flat = changed(config, partition_by=())
    assert rewrite(flat) == 2
    assert all("/" not in name for name in written(flat))
    assert rewrite(config) == 2
    assert written(config) == before
    whole = changed(config, path=str(tmp_path / "whole"), partition_by=())
    finish(whole)
    with pytest.raises(OutputError, match=r"output\.partition_by: \[lang\] is asked for, and part-.* of several"):
        rewrite(changed(whole, partition_by=("lang",)))


def test_a_part_of_the_same_bytes_in_a_folder_leaves_the_one_that_is_there_whole(config, monkeypatch) -> None:
    """Its seal, which is written first, had the place of the other's."""
    flat = changed(replace(config, input=replace(config.input, keep_columns=("id",))), partition_by=(), rows_per_part=3)
    finish(flat)
    before, writing = written(flat), Store.put

    def killed_before_the_part(self: Store, name: str, content: bytes) -> Any:
        if "/part-" in name:
            raise KeyboardInterrupt
        return writing(self, name, content)

    monkeypatch.setattr(Store, "put", killed_before_the_part)
    by_lang = changed(flat, partition_by=("lang",))
    with pytest.raises(KeyboardInterrupt):
        rewrite(by_lang)
    monkeypatch.setattr(Store, "put", writing)
    for name in ("manifest.json", "parts.pq"):
        (Path(config.output.path) / "_batchloom" / name).unlink()
    assert written(flat) == before
    assert rewrite(by_lang) == 3
    if config.output.format == "jsonl":
        assert sorted(written(by_lang).values()) == sorted(before.values())
    assert rewrite(flat) == 3
    assert written(flat) == before


def test_overwriting_removes_parts_in_folders(config) -> None:
    finish(config)
    job = pipelines.plan(changed(config, mode="overwrite", partition_by=()))
    found = ledger.look(job.output)
    ownership.refuse_foreign(job, found)
    ledger.open_job(job.output, job.job_record(), found)
    assert not written(config)


def test_advice_names_an_output_and_not_its_folders(config, tmp_path) -> None:
    finish(config)
    assert ledger.deeper(ledger.look(Store(str(tmp_path)))).endswith(": out.")


@pytest.mark.parametrize("keep", [None, ("id",), ("lang",)])
def test_what_is_kept_does_not_decide_the_folders(config, keep) -> None:
    asked = replace(config, input=replace(config.input, keep_columns=keep))
    manifest = finish(asked)
    assert pipelines.verify(config.output.path).ok
    assert {record.part.partition("/")[0] for record in manifest.parts} == {"lang=en", "lang=d%2Fe"}
    assert "lang" not in pipelines.plan(asked).columns.names
    assert pipelines.plan(asked).fingerprint == pipelines.plan(changed(asked, partition_by=())).fingerprint


def test_the_input_is_told_where_it_has_no_such_partition(config) -> None:
    with pytest.raises(ConfigError, match=r"output\.partition_by: \[id\]: id is no partition .* partitions day, lang"):
        pipelines.plan(changed(config, partition_by=("id",)))


def test_an_output_in_folders_that_the_next_run_would_read_is_refused(config, tmp_path) -> None:
    form = config.output.ending
    write(pa.table({"text": ["text"], "id": [1]}), tmp_path / "in" / FOLDERS[0], "b", form)
    reading = replace(config.input, paths=(f"{tmp_path}/**/*{form}",))
    with pytest.raises(ConfigError, match="lie in each other"):
        pipelines.plan(replace(config, input=reading))
