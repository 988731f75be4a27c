"""Inputs and weights that change under a job, or that cannot be answered."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.faults.oracle import ERROR_ROW
from tests.faults.scene import ROWS_PER_GROUP, Scene
from tests.faults.table import When, fault

PLANNED = "shards in"  # of the line that says what is planned


def _swap(scene: Scene, path: Path, change: Callable[[Path], object]) -> None:
    """Put a changed copy in place of a file, until the command ends; then the old one is back, as it was."""
    kept = path.with_name(f".{path.name}.kept")
    changed = path.with_name(f".{path.name}.changed")
    shutil.copy2(path, kept)
    shutil.copy(path, changed)
    change(changed)
    os.replace(changed, path)
    scene.mends.append(lambda: os.replace(kept, path))


def _swap_shards(scene: Scene, change: Callable[[Path], object]) -> int:
    scene.wait_for_word(PLANNED)
    shards = scene.shards()[1:]
    for shard in shards:
        _swap(scene, shard, change)
    return len(shards)


def _rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    def rewrite(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path, row_group_size=ROWS_PER_GROUP)

    return rewrite


def _other_texts(table: pa.Table) -> pa.Table:
    column = table.schema.get_field_index("text")
    return table.set_column(column, "text", pc.utf8_upper(table["text"]))


@fault("shard swapped in mid-run and put back")
def shard_swapped(scene: Scene) -> int:
    return _swap_shards(scene, _rewrite(_other_texts))


@fault("shard swapped and put back while the job runs")
def shard_swapped_shortly(scene: Scene) -> int:
    num_swapped = _swap_shards(scene, _rewrite(_other_texts))
    scene.wait_for_parts(3)
    scene.mend()
    return num_swapped


@fault("shard with fewer rows in mid-run")
def shard_shortened(scene: Scene) -> int:
    return _swap_shards(scene, _rewrite(lambda table: table.slice(0, table.num_rows // 2)))


@fault("shard with more rows in mid-run")
def shard_appended(scene: Scene) -> int:
    return _swap_shards(scene, _rewrite(lambda table: pa.concat_tables([table, table])))


@fault("shard truncated in mid-run")
def shard_truncated(scene: Scene) -> int:
    return _swap_shards(scene, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))


@fault("shard emptied in mid-run")
def shard_emptied(scene: Scene) -> int:
    return _swap_shards(scene, lambda path: path.write_bytes(b""))


@fault("shard with a damaged page", When.BEFORE)
def page_damaged(scene: Scene) -> None:
    shard = scene.shards()[0]
    metadata = pq.read_metadata(shard)
    group = metadata.row_group(1)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "text")
    first = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(shard.read_bytes())
    content[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    shard.write_bytes(content)
    start = metadata.row_group(0).num_rows
    for row_id in pq.read_table(shard, columns=["id"])["id"].to_pylist()[start : start + group.num_rows]:
        scene.expected[row_id] = ERROR_ROW


def _change_weights(path: Path, change: Callable[[dict], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@fault("weights replaced after planning")
def weights_replaced(scene: Scene) -> None:
    scene.wait_for_word(PLANNED)

    def negate(weights: dict) -> None:
        for name, weight in weights.items():
            weights[name] = -weight

    _swap(scene, scene.model / "model.safetensors", lambda path: _change_weights(path, negate))


@fault("weights truncated after planning")
def weights_truncated(scene: Scene) -> None:
    scene.wait_for_word(PLANNED)
    _swap(scene, scene.model / "model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1000]))


@fault("tokenizer replaced after planning")
def tokenizer_replaced(scene: Scene) -> None:
    scene.wait_for_word(PLANNED)
    _swap(scene, scene.model / "merges.txt", lambda path: path.write_text(path.read_text().partition("\n")[0] + "\n"))


@fault("one weight is not a number", When.BEFORE, limits={"max_error_rate": 1.0})
def weight_not_a_number(scene: Scene) -> None:
    def spoil(weights: dict) -> None:
        weights["model.encoder.layers.0.fc1.weight"][0, 0] = float("nan")

    _change_weights(scene.model / "model.safetensors", spoil)
    for row_id in scene.expected:
        scene.expected[row_id] = ERROR_ROW
