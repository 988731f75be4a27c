"""Other inputs and outputs than plain Parquet, under the faults of the other modules."""

import json
import shutil
import signal

import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from tests.faults.output_faults import ANYTIME, AT_REST, part_copied, part_cut, part_deleted, part_flipped
from tests.faults.process_faults import driver_killed, signal_driver
from tests.faults.scene import Scene
from tests.faults.table import When, Word, fault

JSON_LINES = {"format": "jsonl"}
FOLDERS = {"partition_by": ["lang"]}
CHOSEN = {"where": "note is not null"}
LANGUAGES = {"a": "en", "b": "de", "c": "__HIVE_DEFAULT_PARTITION__"}


def in_partitions(scene: Scene) -> None:
    """Move each shard to a folder of its own."""
    for shard in scene.shards():
        folder = scene.corpus / f"lang={LANGUAGES[shard.stem]}"
        folder.mkdir()
        shutil.move(shard, folder / shard.name)


def without_notes(scene: Scene) -> None:
    """Expect only the rows that `CHOSEN` chooses."""
    for row in pq.read_table(scene.corpus).to_pylist():
        if row["note"] is None:
            del scene.expected[row["id"]]


def in_json_lines(scene: Scene) -> None:
    """Write each shard as JSON Lines."""
    for shard in scene.shards():
        lines = (json.dumps(row) + "\n" for row in pq.read_table(shard).to_pylist())
        shard.with_suffix(".jsonl").write_text("".join(lines))
        shard.unlink()


def in_a_table(scene: Scene) -> None:
    """Write all shards as a Delta table, and delete some of its rows."""
    table = scene.folder / "table"
    for shard in scene.shards():
        write_deltalake(table, pq.read_table(shard), mode="append")
    DeltaTable(table).delete("note = 'note 7' or note = 'note 70'")
    for row_id in (7, 70):
        del scene.expected[row_id]
    scene.job["input"]["paths"] = [str(table)]


# Names of faults stay as in the other modules; what is different stands behind them.
for kind in (part_deleted, part_cut, part_flipped, part_copied):
    fault(f"{kind.name}, JSON Lines", *ANYTIME, output=JSON_LINES)(kind.inject)
    fault(f"{kind.name}, in folders of partitions", *ANYTIME, prepare=in_partitions, output=FOLDERS)(kind.inject)
for prepare, name, job in (
    (None, "output of JSON Lines", {"output": JSON_LINES}),
    (in_partitions, "folders of partitions", {"output": FOLDERS}),
    (in_json_lines, "input of JSON Lines", {}),
    (without_notes, "input.where", {"input": CHOSEN}),
):
    fault(f"{driver_killed.name}, {name}", prepare=prepare, **job)(driver_killed.inject)
fault(f"{part_deleted.name}, input.where", *ANYTIME, prepare=without_notes, input=CHOSEN)(part_deleted.inject)
fault(f"{part_copied.name}, input.where", *ANYTIME, prepare=without_notes, input=CHOSEN)(part_copied.inject)


@fault("seals of JSON Lines deleted or cut", *AT_REST, verify=Word.NO, output=JSON_LINES)
def seals_harmed(scene: Scene) -> int:
    seals = sorted((scene.output / "_batchloom" / "seals").rglob("*.pq"))
    for number, path in enumerate(seals):
        path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[:-30])
    return len(seals)


@fault("part of another partition's folder", *AT_REST, verify=Word.NO, prepare=in_partitions, output=FOLDERS)
def part_in_another_folder(scene: Scene) -> None:
    (part,) = scene.some_parts(1)
    other = next(folder for folder in scene.output.glob("lang=*") if folder != part.parent)
    shutil.move(part, other / part.name)
    scene.mends.append((other / part.name).unlink)


@fault("SIGKILL of the driver, and the table moves on", prepare=in_a_table)
def table_moved_on(scene: Scene) -> int:
    """The version that the job began with is read to the end."""

    def move() -> None:
        table = DeltaTable(scene.job["input"]["paths"][0])
        write_deltalake(table, pq.read_table(scene.shards()[0]).slice(0, 9), mode="append")
        table.delete("id > 100")

    return 1 + signal_driver(scene, signal.SIGKILL, times=1, between=move)


@fault("files of a table that are gone", When.UNFINISHED, prepare=in_a_table)
def table_vacuumed(scene: Scene) -> None:
    kept = scene.folder / "kept"
    table = scene.folder / "table"
    shutil.copytree(table, kept)

    def back() -> None:
        shutil.rmtree(table, ignore_errors=True)
        kept.rename(table)

    for path in sorted(table.glob("*.parquet")):
        path.unlink()
    scene.mends.append(back)
