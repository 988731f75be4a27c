"""A scene: one job with an input, a model and an output of its own, which faults may spoil. It knows no faults.

What runs is the command line, in processes of its own; what is judged is judged by the oracle.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import yaml

from tests.faults.oracle import Row, Verdict, compare, read_rows
from tests.faults.processes import MARK, send, wait_until, with_mark
from tests.faults.proxy import Burst, FaultyProxy

ROOT = Path(__file__).resolve().parents[2]
ROWS_PER_GROUP = 6  # and per unit: many units of few rows
ROWS_PER_PART = 12  # two units
COMMAND_SECONDS = 240.0  # one command takes 5 to 30: more is a hang, which is a failure too
HUNG = -1


@dataclass(frozen=True)
class Bucket:
    """A folder of an object store, as the oracle sees it (without the proxy) and as jobs do."""

    url: str
    proxy: FaultyProxy
    """What jobs see; their environment names it."""
    options: Mapping[str, Any]
    """The oracle's way to the store itself."""

    @classmethod
    def make(cls, name: str, proxy: FaultyProxy, environment: Mapping[str, str]) -> "Bucket":
        """Create a bucket, with the credentials of a job's environment."""
        key, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        options = {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": proxy.upstream}}
        fsspec.filesystem("s3", **options).makedirs(name, exist_ok=True)
        return cls(f"s3://{name}", proxy, options)

    def fill(self, folder: Path) -> dict[str, str]:
        """Empty the bucket, upload input and model, and return their URLs and the output's."""
        self.proxy.play()
        filesystem, root = fsspec.core.url_to_fs(self.url, **self.options)
        filesystem.invalidate_cache()
        if found := filesystem.find(root):
            filesystem.rm(found)
        for name in ("corpus", "model"):
            for file in (folder / name).iterdir():
                filesystem.pipe_file(f"{root}/{name}/{file.name}", file.read_bytes())
        return {name: f"{self.url}/{name}" for name in ("corpus", "model", "out")}


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    printed: str
    seconds: float

    @property
    def words(self) -> str:
        """The exit code and the line that says why: the error's first, else the last."""
        lines = [line.strip() for line in self.printed.splitlines() if line.strip()]
        error = next((line for line in lines if line.startswith("Error:")), None)
        trace = "TRACEBACK " if "Traceback (most recent call last)" in self.printed else ""
        code = "hung" if self.code == HUNG else str(self.code)
        return f"{code}: {trace}{error or (lines[-1] if lines else '')}"


@dataclass
class Scene:
    """One job in a folder of its own, and what its answers should be."""

    folder: Path
    job: dict[str, Any]
    expected: dict[int, Row]
    environment: dict[str, str]
    bucket: Bucket | None = None
    process: "subprocess.Popen[str] | None" = None
    """The command, while it runs."""
    ends: list[End] = field(default_factory=list)
    """How the commands ended so far."""
    mends: list[Callable[[], object]] = field(default_factory=list)
    """What undoes a fault that somebody has to undo."""
    cleanups: list[Callable[[], object]] = field(default_factory=list)
    logs: dict[int, Path] = field(default_factory=dict)
    """What each command prints, by its process id."""

    # ----------------------------------------------------------------------------------------------------- its places

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The output's filesystem and path."""
        if self.bucket is None:
            return fsspec.filesystem("file"), str(self.output)
        return fsspec.core.url_to_fs(f"{self.bucket.url}/out", **self.bucket.options)

    @property
    def filesystem(self) -> Any:
        return self._opened[0]

    @property
    def num_parts(self) -> int:
        """Return how many there are at least."""
        return -(-len(self.expected) // ROWS_PER_PART)

    def shards(self) -> list[Path]:
        return sorted(self.corpus.glob("*.parquet"))

    def parts(self) -> list[str]:
        """Return the paths of the parts that are there, on the output's filesystem, in folders of partitions too."""
        self.filesystem.invalidate_cache()
        root = self._opened[1]
        return sorted(path for glob in ("part-*", "*=*/part-*") for path in self.filesystem.glob(f"{root}/{glob}"))

    def finish(self) -> None:
        """Run the command undisturbed."""
        end = self.wait(self.start())
        assert end.code == 0, end.printed

    def open_again(self) -> None:
        """Make a finished output one of a job that was ended before two of its parts were written."""
        (self.output / "_SUCCESS").unlink()
        (self.output / "_batchloom" / "manifest.json").unlink()
        for part in self.some_parts(4)[::3]:
            part.unlink()

    def some_parts(self, count: int) -> list[Path]:
        """Return parts of the middle of a local output, waiting for them where the command runs."""
        if self.process is not None:
            self.wait_for_parts(count + 1)
        parts = self.parts()
        first = (len(parts) - count) // 2
        return [Path(path) for path in parts[first : first + count]]

    # --------------------------------------------------------------------------------------------------- its commands

    def start(self, *settings: str, is_another: bool = False) -> "subprocess.Popen[str]":
        """Start `batchloom run`, in a session of its own so that only the driver gets our signals. `is_another`: beside
        one that runs."""
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.job))
        command = [sys.executable, "-m", "batchloom", "run", str(self.folder / "job.yaml")]
        for setting in settings:
            command += ["--set", setting]
        command += ["--even-if-running"] if is_another else []
        path = self.folder / f"run-{len(self.logs)}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                text=True,
            )
        self.logs[process.pid] = path
        return process

    def wait(self, process: "subprocess.Popen[str]", seconds: float = COMMAND_SECONDS) -> End:
        """Wait for a command; one that is not done in time is killed."""
        started = time.monotonic()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = HUNG
        return End(code, self.logs[process.pid].read_text(), time.monotonic() - started)

    def verify(self) -> End:
        """Ask `batchloom verify`."""
        started = time.monotonic()
        command = [sys.executable, "-m", "batchloom", "verify", str(self.folder / "job.yaml")]
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.job))
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        return End(done.returncode, done.stdout + done.stderr, time.monotonic() - started)

    def mend(self) -> None:
        """Undo what a fault did to input or model, as somebody would after the command failed."""
        while self.mends:
            self.mends.pop()()

    # ------------------------------------------------------------------------------------------------- while it runs

    def wait_for_parts(self, count: int) -> None:
        """Wait until the running command has written so many parts."""
        self.wait_for(lambda: len(self.parts()) >= count, f"part {count}")

    def wait_for_word(self, word: str) -> None:
        """Wait until the running command prints a word."""
        assert self.process is not None
        log = self.logs[self.process.pid]
        self.wait_for(lambda: word in log.read_text(), f"the word {word!r}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        process = self.process
        assert process is not None
        wait_until(lambda: condition() or process.poll() is not None, COMMAND_SECONDS / 2, what)
        assert condition(), f"the command ended before {what}: {self.wait(process).printed[-2000:]}"

    def pids(self, part_of_command: str) -> list[int]:
        """Return the processes of this job's cluster with the given part in their command line."""
        return with_mark(self.environment[MARK], part_of_command)

    def signal(self, part_of_command: str, which: int) -> int:
        """Send a signal to those processes, once they are there, and return how many got it."""
        self.wait_for(lambda: bool(self.pids(part_of_command)), part_of_command)
        return send(self.pids(part_of_command), which)

    def play(self, *bursts: Burst) -> None:
        """Play a script of store faults to this job."""
        assert self.bucket is not None
        self.bucket.proxy.play(*bursts)

    def num_bursts(self) -> int:
        """Return how many bursts of the script happened."""
        assert self.bucket is not None
        return sum(burst.num_hit > 0 for burst in self.bucket.proxy.bursts)

    # -------------------------------------------------------------------------------------------------------- verdict

    def verdict(self) -> Verdict:
        """Return what the oracle says of the output as it is."""
        return compare(self.expected, self.rows())

    def rows(self) -> Iterable[Row]:
        """Return the output's rows, as any reader finds them."""
        return read_rows(*self._opened)

    def is_closed(self) -> bool:
        """Return whether the output has a manifest; without one it is not finished, whatever rows it has."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(f"{self._opened[1]}/_batchloom/manifest.json"))

    def remove(self) -> None:
        """End what runs and remove the files."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for clean in self.cleanups:
            clean()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.bucket is not None:
            self.bucket.proxy.play()


def command_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a user's command with this source tree."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", MARK)}
    return clean | {"PYTHONPATH": f"{Path(__file__).parent / 'hooks'}{os.pathsep}{ROOT}"} | dict(more)
