"""Outputs that somebody else writes to: parts, manifest, markers, the disk itself."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.scene import Scene
from tests.faults.table import When, Word, fault

ANYTIME = (When.RUNNING, When.UNFINISHED, When.FINISHED)
AT_REST = (When.UNFINISHED, When.FINISHED)
FOOTERS = (b"{}", b"[]", b'{"account": {}}')


@fault("part deleted", *ANYTIME)
def part_deleted(scene: Scene) -> int:
    return sum(part.unlink() is None for part in scene.some_parts(3))


@fault("part cut short", *ANYTIME)
def part_cut(scene: Scene) -> int:
    return sum(part.write_bytes(part.read_bytes()[:-40]) > 0 for part in scene.some_parts(3))


@fault("part with a flipped bit", *ANYTIME)
def part_flipped(scene: Scene) -> int:
    for part in (parts := scene.some_parts(3)):
        content = bytearray(part.read_bytes())
        content[len(content) // 4] ^= 4
        part.write_bytes(content)
    return len(parts)


@fault("part copied over another", *ANYTIME)
def part_copied(scene: Scene) -> int:
    first, *others = scene.some_parts(3)
    return sum(other.write_bytes(first.read_bytes()) > 0 for other in others)


@fault("part rewritten with fewer rows", *ANYTIME)
def part_rewritten(scene: Scene) -> int:
    for part in (parts := scene.some_parts(3)):
        table = pq.read_table(part)
        pq.write_table(table.slice(0, table.num_rows // 2), part)  # the footer's metadata stay
    return len(parts)


@fault("part's rows replaced by those of another, footer kept", *ANYTIME)
def part_exchanged(scene: Scene) -> int:
    first, second = scene.some_parts(2)
    footer, stranger = pq.read_schema(first).metadata, pq.read_table(second)
    pq.write_table(stranger.replace_schema_metadata(footer), first)
    return 1


@fault("footer {}, [] or without an account", *AT_REST, verify=Word.NO)
def footer_emptied(scene: Scene) -> int:
    for part, footer in zip(scene.some_parts(3), FOOTERS, strict=True):
        pq.write_table(pq.read_table(part).replace_schema_metadata({b"batchloom": footer}), part)
    return len(FOOTERS)


@fault("folder in place of a part", *AT_REST)
def part_is_folder(scene: Scene) -> None:
    (part,) = scene.some_parts(1)
    part.unlink()
    part.mkdir()
    scene.mends.append(lambda: part.is_dir() and part.rmdir())


@fault("part of a job copied under another name", *ANYTIME)
def part_doubled(scene: Scene) -> None:
    (part,) = scene.some_parts(1)
    copy = part.with_name(f"copy-of-{part.name}")
    shutil.copy(part, copy)
    scene.mends.append(lambda: copy.unlink(missing_ok=True))


@fault("stray file", When.FINISHED, verify=Word.AS_RUN)
def stray_file(scene: Scene) -> None:
    stray = scene.output / "notes.txt"
    stray.write_text("from somebody")
    scene.mends.append(lambda: stray.unlink(missing_ok=True))


@fault("job.json removed", *ANYTIME)
def job_removed(scene: Scene) -> None:
    scene.some_parts(1)
    (scene.output / "_batchloom" / "job.json").unlink()


@fault("job.json that is no JSON", *AT_REST)
def job_garbled(scene: Scene) -> None:
    (scene.output / "_batchloom" / "job.json").write_text("{")


@fault("manifest removed", When.FINISHED)
def manifest_removed(scene: Scene) -> None:
    (scene.output / "_batchloom" / "manifest.json").unlink()


@fault("manifest cut short", When.FINISHED, verify=Word.NO)
def manifest_cut(scene: Scene) -> None:
    manifest = scene.output / "_batchloom" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])


@fault("manifest with wrong types", When.FINISHED, verify=Word.NO)
def manifest_mistyped(scene: Scene) -> None:
    manifest = scene.output / "_batchloom" / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"parts": {"a": 1}, "totals": []}))


@fault("manifest that omits a part, which was deleted", When.FINISHED)
def manifest_shortened(scene: Scene) -> None:
    """Every number of it agrees: only the input tells."""
    (part,) = scene.some_parts(1)
    part.unlink()
    manifest = scene.output / "_batchloom" / "manifest.json"
    values = json.loads(manifest.read_text())
    gone = next(record for record in values["parts"] if record["part"] == part.name)
    values["parts"].remove(gone)
    less = {**gone, "num_ok": gone["num_rows"] - gone["num_errors"], "num_units": 1, "num_bytes": gone["bytes"]}
    for name, value in values["totals"].items():
        values["totals"][name] = value - less.get(f"num_{name}", 0)
    manifest.write_text(json.dumps(values))


@fault("_SUCCESS removed", When.FINISHED)
def marker_removed(scene: Scene) -> None:
    (scene.output / "_SUCCESS").unlink()


@fault("output folder deleted", *ANYTIME)
def output_deleted(scene: Scene) -> None:
    scene.some_parts(3)
    shutil.rmtree(scene.output, ignore_errors=True)


@fault("disk full", When.BEFORE, limits={"storage_patience": 5})
def disk_full(scene: Scene) -> None:
    _mount(scene.output, "size=40k")
    scene.cleanups.append(lambda: subprocess.run(["umount", "--lazy", scene.output], check=True))
    scene.mends.append(lambda: subprocess.run(["mount", "-o", "remount,size=20m", scene.output], check=True))


def _mount(folder: Path, options: str) -> None:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
