"""Outputs that somebody else writes to: parts, manifest, markers, the disk itself."""

import hashlib
import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.ledger.register import Register
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
    manifest.write_text(json.dumps(values | {"versions": [], "totals": []}))


@fault("records of parts removed or cut", When.FINISHED, When.UNFINISHED, verify=Word.NO)
def records_harmed(scene: Scene) -> int:
    """They save reading, and decide nothing; a finished output is not whole without them."""
    records = [scene.output / "_batchloom" / "parts.pq", *(scene.output / "_batchloom").glob("records/*")]
    for number, path in enumerate(records):
        path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[:-30])
    return len(records)


@fault("records that omit a part, which was deleted", When.FINISHED)
def records_shortened(scene: Scene) -> None:
    """Every number of them, and of the manifest, agrees: only the input tells."""
    (part,) = scene.some_parts(1)
    part.unlink()
    folder = scene.output / "_batchloom"
    left = Register.of(
        record for record in Register.read((folder / "parts.pq").read_bytes()) if record.part != part.name
    )
    values = json.loads((folder / "manifest.json").read_text())
    values["parts_sha256"] = hashlib.sha256(left.to_bytes()).hexdigest()
    values["totals"] |= left.totals()
    values["errors_by_kind"], values["degenerate"] = left.errors_by_kind(), left.degenerate()
    (folder / "parts.pq").write_bytes(left.to_bytes())
    (folder / "manifest.json").write_text(json.dumps(values))


@fault("answers of unfinished parts deleted or cut", When.RUNNING)
def answers_harmed(scene: Scene) -> int:
    """Units' answers, before their part is made of them."""
    folder = scene.output / "_batchloom" / "answers"
    scene.wait_for(lambda: any(folder.glob("*/*.pq")), "answers")
    num_harmed = 0
    for path in folder.glob("*/*.pq"):
        with suppress(FileNotFoundError):
            path.unlink() if num_harmed % 2 else path.write_bytes(path.read_bytes()[:-30])
            num_harmed += 1
    return num_harmed


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
