"""Write what a benchmark measured as JSON, with the machine, the versions and the command that gave it.

A benchmark calls `add_options(parser)`, measures, and calls `write` once. A file is one question, and README's table is
made of these files alone (benchmarks/table.py).
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
DTYPES = ("bfloat16", "float32", "int8")  # that a benchmark may ask of ours
PACKAGES = ("torch", "transformers", "ctranslate2", "ray", "tokenizers", "pyarrow")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")  # that products depend on


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a result."""

    system: str
    """What was measured: `batchloom`, or a rival's name."""
    what: str = "speed"
    """Of README's table are the speeds of batchloom and of rivals."""
    value: float
    unit: str
    dtype: str = ""
    settings: str = ""
    """Those of this figure; of a rival the best that were found."""
    rounds: tuple[float, ...] = ()
    """What `value` was taken from."""
    at: Mapping[str, int] = field(default_factory=dict)
    """Where it lies on the axes of a plot."""


def speed(system: str, rounds: Sequence[float], unit: str, **about: str) -> Figure:
    """Return the median of rounds as a speed."""
    return Figure(system=system, value=statistics.median(rounds), unit=unit, rounds=tuple(rounds), **about)


def told(figures: Mapping[str, float], what: str) -> list[Figure]:
    """Return figures that are named with their unit at the end (`resume s`, `kept MB`), or are counts."""
    return [
        Figure(
            system="batchloom",
            what=f"{what}: {name}",
            value=value,
            unit=name.split()[-1] if name.split()[-1] in ("s", "MB", "kB") else "",
        )
        for name, value in figures.items()
    ]


def named(name: str, device: str) -> str:
    """Return the name of a question that is asked on processors and on GPUs."""
    return name if device == "cpu" else f"gpu-{name}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder where the JSON is written")


def write(
    folder: Path, name: str, title: str, workload: Mapping[str, Any], figures: Sequence[Figure], device: str = "cpu"
) -> None:
    """Write a result to `folder`/`name`.json.

    Args:
        folder: Where results are; made if it is not there.
        name: The question.
        title: The workload in a line, with its lengths.
        workload: What the figures depend on: model, rows, lengths in tokens, options, threads.
        device: Where it ran: `cpu`, or a GPU as torch names it.
    """
    result = {
        "title": title,
        "command": command(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        **commit(),
        "machine": machine(device),
        "versions": {"python": platform.python_version()} | versions(),
        "workload": dict(workload),
        "figures": [_short(asdict(figure)) for figure in figures],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"written: {path}", flush=True)


def command(arguments: Sequence[str]) -> str:
    """Return the command of these `sys.argv`, without the folders of this machine."""
    own = [Path(one).name if Path(one).is_absolute() else one for one in arguments[1:]]
    return f"python -m benchmarks.{Path(arguments[0]).stem} {shlex.join(own)}".strip()


def commit() -> dict[str, Any]:
    """Return the last commit of what is measured, and whether that or a benchmark was changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    code = ("models", "pipelines", "jobs")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code, "benchmarks/*.py")
    return {"commit": git("log", "-1", "--format=%h", "--abbrev=10", "--", *code) or None, "changed": bool(changed)}


def machine(device: str) -> dict[str, Any]:
    """Return what speeds depend on. On Linux a processor is told by its family and model as well as by its name."""
    told: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    except OSError:  # another system
        told = {"model name": platform.processor() or platform.machine()}
    has = told.get("flags", "").split()
    return {
        "processor": told.get("model name", platform.machine()),
        "family": told.get("cpu family"),
        "model": told.get("model"),
        "flags": [flag for flag in FLAGS if flag in has],
        "cores": num_cores(),
        "gpu": gpu_name(device),
    }


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_name(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)


def versions() -> dict[str, str | None]:
    """Return the version of each package, null where it is not installed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: installed(name) for name in PACKAGES}


def _short(figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure without fields that say nothing, and with five digits."""

    def digits(value: float) -> float:
        return float(f"{value:.5g}")

    kept = {key: value for key, value in figure.items() if value not in ("", (), {})}
    kept["value"] = digits(figure["value"])
    return kept | ({"rounds": [digits(one) for one in figure["rounds"]]} if figure["rounds"] else {})
