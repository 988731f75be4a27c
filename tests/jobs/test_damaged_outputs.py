"""Every command over every kind of damaged output: an answer or one message, a documented exit code, no traceback.

A job to run is there: 30 rows in 3 parts. `run` computes nothing here; where it would, it ends with JobError.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batchloom.jobs.exit_codes import ExitCode
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.sealed import FOOTER_KEY
from batchloom.pipelines.planning.spans import Span

Damage = Callable[[Path], Any]
DEEP = "[" * 100_000


def part(folder: Path) -> Path:
    return sorted(folder.glob("part-*.parquet"))[1]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x40
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def become_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def with_footer(path: Path, footer: str | None) -> None:
    """Write the part's rows again with another footer, as a tool or an older version might."""
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer} if footer is not None else None), path)


def with_values(path: Path, *keys: str | int, value: Any) -> None:
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))


PART: dict[str, Damage] = {
    "a part is missing": lambda folder: part(folder).unlink(),
    "all parts are missing": lambda folder: [path.unlink() for path in folder.glob("part-*.parquet")],
    "a part is empty": lambda folder: part(folder).write_bytes(b""),
    "a part is cut": lambda folder: os.truncate(part(folder), part(folder).stat().st_size // 2),
    "a part lacks its last byte": lambda folder: os.truncate(part(folder), part(folder).stat().st_size - 1),
    "a part is flipped at 0.1": lambda folder: flip(part(folder), 0.1),
    "a part is flipped at 0.5": lambda folder: flip(part(folder), 0.5),
    "a part is flipped at 0.9": lambda folder: flip(part(folder), 0.9),
    "a part is flipped at its end": lambda folder: flip(part(folder), 1),
    "a part is a folder": lambda folder: become_folder(part(folder)),
    "a part is a text": lambda folder: part(folder).write_text("no Parquet"),
    "a part is a pipe": lambda folder: (path := part(folder), path.unlink(), os.mkfifo(path)),
    "a part is a broken link": lambda folder: become_link(part(folder), "nowhere"),
    "a part is a link in a circle": lambda folder: become_link(part(folder), part(folder).name),
    "a part has no footer": lambda folder: with_footer(part(folder), None),
    "a part's footer is {}": lambda folder: with_footer(part(folder), "{}"),
    "a part's footer is []": lambda folder: with_footer(part(folder), "[]"),
    "a part's footer is deep": lambda folder: with_footer(part(folder), DEEP),
    "a part's footer is no JSON": lambda folder: with_footer(part(folder), "\xff"),
    "a part has other columns": lambda folder: pq.write_table(pa.table({"x": [1]}), part(folder)),
    "a part is there twice": lambda folder: shutil.copy(part(folder), folder / ("part-x" + part(folder).name[-28:])),
}
CONTENTS = {
    "empty": "",
    "[]": "[]",
    "{}": "{}",
    "null": "null",
    "5": "5",
    "cut": '{"job": {"ta',
    "deep": DEEP,
    "bytes": "\udcff",
}


def json_damages(name: str) -> Iterator[tuple[str, Damage]]:
    yield f"{name} is missing", lambda folder: (folder / "_batchloom" / name).unlink()
    yield f"{name} is a folder", lambda folder: become_folder(folder / "_batchloom" / name)
    yield f"{name} is an endless device", lambda folder: become_link(folder / "_batchloom" / name, "/dev/zero")
    for title, content in CONTENTS.items():
        yield (
            f"{name} is {title}",
            lambda folder, content=content: (folder / "_batchloom" / name).write_bytes(os.fsencode(content)),
        )
    for key in ("job", "fingerprint", "fingerprint_of"):
        for value in (None, 5, "x", [], {}):
            yield (
                f"{name}: {key} is {value!r}",
                lambda folder, key=key, value=value: with_values(folder / "_batchloom" / name, key, value=value),
            )


WRONG_VALUES: list[tuple[tuple[str | int, ...], Any]] = [
    (("parts_sha256",), 5), (("parts_sha256",), "0" * 64), (("layout",), None), (("layout_of",), {}),
    (("totals",), {}), (("totals", "rows"), None), (("timing",), {}), (("timing", "wall_seconds"), float("nan")),
    (("timing", "wall_seconds"), float("inf")), (("timing", "wall_seconds"), 0), (("versions",), {"ray": 5}),
    (("errors_by_kind",), {"x": "y"}), (("job", "task"), 5), (("job", "model"), None), (("job", "input"), []),
    (("job", "input", "paths"), 5), (("job", "input", "paths"), []),
    (("job", "input", "paths"), ["zip://a.parquet::/no"]),
    (("job", "input", "paths"), ["nul\0"]), (("job", "input", "storage_options"), {"nope": 1}),
    (("job", "output"), None),
    (("job", "generation"), json.loads("[" * 40 + "]" * 40)),
]  # fmt: skip
MANIFEST = dict(json_damages("manifest.json")) | {
    f"manifest: {'.'.join(map(str, keys))} is {str(value)[:40]}": lambda folder, keys=keys, value=value: with_values(
        folder / "_batchloom/manifest.json", *keys, value=value
    )
    for keys, value in WRONG_VALUES
}


def with_records(folder: Path, **changes: Any) -> None:
    """Change the first record, and the manifest's hash with it."""
    path = folder / "_batchloom" / "parts.pq"
    first, *others = Register.read(path.read_bytes())
    path.write_bytes(Register.of([replace(first, **changes), *others]).to_bytes())
    with_values(
        folder / "_batchloom/manifest.json", "parts_sha256", value=hashlib.sha256(path.read_bytes()).hexdigest()
    )


RECORDS: dict[str, Damage] = {
    "parts.pq is missing": lambda folder: (folder / "_batchloom/parts.pq").unlink(),
    "parts.pq is empty": lambda folder: (folder / "_batchloom/parts.pq").write_bytes(b""),
    "parts.pq is cut": lambda folder: os.truncate(folder / "_batchloom/parts.pq", 500),
    "parts.pq is flipped": lambda folder: flip(folder / "_batchloom/parts.pq", 0.5),
    "parts.pq is a folder": lambda folder: become_folder(folder / "_batchloom/parts.pq"),
    "parts.pq is a part": lambda folder: shutil.copy(part(folder), folder / "_batchloom/parts.pq"),
    "parts.pq is other Parquet": lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "_batchloom/parts.pq"),
    "a record leads outside": lambda folder: with_records(folder, part="../../x.parquet"),
    "a record leads far": lambda folder: with_records(folder, part="part-/../../../x-000000000000-00000000.parquet"),
    "a record has too many rows": lambda folder: with_records(folder, num_rows=1 << 60),
    "a record has fewer rows than none": lambda folder: with_records(folder, num_rows=-1),
    "a record has no rows of any shard": lambda folder: with_records(folder, spans=()),
    "a record has rows of another shard": lambda folder: with_records(folder, spans=(Span("x", "y", 0, 10),)),
    "a record has rows that are not there": lambda folder: with_records(folder, spans=(Span("x", "y", 7, -1),)),
}
FOLDER: dict[str, Damage] = {
    "_SUCCESS only": lambda folder: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in folder.iterdir() if p.name != "_SUCCESS"
    ],
    "no _SUCCESS": lambda folder: (folder / "_SUCCESS").unlink(),
    "no _batchloom": lambda folder: shutil.rmtree(folder / "_batchloom"),
    "_batchloom is a file": lambda folder: (
        shutil.rmtree(folder / "_batchloom"),
        (folder / "_batchloom").write_text("x"),
    ),
    "a stray text": lambda folder: (folder / "notes.txt").write_text("x"),
    "a stray name that steers": lambda folder: (folder / "\x1b[31m\u202ered.parquet").write_text("x"),
    "a stray name of bytes": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.parquet")).write_text("x"),
    "a stray Parquet file": lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "x.parquet"),
    "a stray folder": lambda folder: shutil.copytree(folder / "_batchloom", folder / "more.parquet"),
    "a stray link in a circle": lambda folder: (folder / "circle").symlink_to(folder),
    "nothing": lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "no folder": shutil.rmtree,
}
DAMAGES = PART | MANIFEST | RECORDS | dict(json_damages("job.json")) | FOLDER
EXPLAINING = (
    "timing.wall_seconds is 0",
    "job.task",
    "job.model",
    "job.output",
    "job.generation",
    "job.input.storage_options",
)
HARMLESS = [  # verify says yes: rows and parts are told by the rest, and this only explains
    "no _SUCCESS",
    "a stray link in a circle",
    *(name for name in DAMAGES if name.startswith(("job.json", *(f"manifest: {key}" for key in EXPLAINING)))),
]


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise JobError("here Ray would start")

    monkeypatch.setattr("batchloom.pipelines.running.stream.stream", refuse)


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_command_has_an_answer(
    finished: Any, batchloom: Callable[..., Any], tmp_path: Path, damage: Damage, request: pytest.FixtureRequest
) -> None:
    folder, job = tmp_path / "out", tmp_path / "job.yaml"
    shutil.copytree(finished.output, folder)
    values = yaml.safe_load(finished.job.read_text())
    job.write_text(yaml.safe_dump({**values, "output": {"path": str(folder)}}))
    damage(folder)
    commands = {
        "show": ("show", folder),
        "show --json": ("show", folder, "--json"),
        "status": ("status", folder),
        "verify": ("verify", folder),
        "verify of the job": ("verify", job, "--json"),
        "report": ("report", folder, "--json"),
        "report --html": ("report", folder, "--html", tmp_path / "report.html"),
        "plan": ("plan", job),
        "run": ("run", job),
    }
    for name, arguments in commands.items():
        said = batchloom(*arguments)  # an exception that is no exit is raised
        assert said.code in set(ExitCode), name
        assert "Traceback" not in said.err, name
        assert "\x1b" not in said.out + said.err, name
        assert said.out or said.err, name
        if said.code:
            assert "Error: " in said.err or name.startswith("verify"), name
        if "--json" in arguments:
            assert said.json, name
        if name == "verify":
            assert (said.code == 0) == (request.node.callspec.id in HARMLESS), said
