"""Imports point down: jobs -> pipelines -> models, without a circle. What decides imports neither torch nor ray."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "pipelines", "jobs")
FORBIDDEN = {
    "models": {"ray", "pyarrow", "batchloom.pipelines", "batchloom.jobs", "typer", "rich", "pydantic", "transformers"},
    "pipelines": {"batchloom.jobs", "typer", "rich", "pydantic", "transformers"},
    "jobs": {"transformers"},
}
POLICY = [
    "pipelines/ledger/ledger.py",
    "pipelines/metrics.py",
    "pipelines/replicas/placement.py",
    "pipelines/telemetry/measures.py",
    "pipelines/telemetry/metrics_table.py",
    "pipelines/telemetry/usage.py",
    "pipelines/watching/attempts.py",
    "pipelines/watching/pace.py",
    "pipelines/watching/room_wait.py",
    "pipelines/watching/starts.py",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "pipelines/columns").glob("*.py"))),
    "pipelines/forecasting/expected.py",
    "pipelines/forecasting/forecast.py",
    "pipelines/forecasting/places.py",
    "pipelines/forecasting/rehearsal.py",
    "pipelines/forecasting/sample.py",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "pipelines/formats").glob("*.py"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "pipelines/planning").glob("*.py"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "pipelines/tasks").glob("*.py"))),
    "models/families/config.py",
    "models/families/table.py",
    "models/footprint.py",
    "models/machines.py",
    "models/generation/params.py",
    "models/generation/scheduler.py",
    "models/generation/requests.py",
    "models/single_pass/buckets.py",
]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules() -> dict[str, Path]:
    """Every module of the package by the name that it is imported by."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    named = {".".join(("batchloom", *path.relative_to(ROOT).with_suffix("").parts)): path for path in paths}
    named = {name.removesuffix(".__init__"): path for name, path in named.items()}
    return named | {"batchloom": ROOT / "batchloom/__init__.py", "batchloom.__main__": ROOT / "batchloom/__main__.py"}


def imports(path: Path, with_types: bool = False) -> set[str]:
    """Names of the modules that a file imports, in functions too; those under `if TYPE_CHECKING` only `with_types`."""
    found = set()
    for node in ast.walk(parsed(path)):
        if not with_types and _is_type_checking(parsed(path), node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_type_checking(tree: ast.Module, node: ast.AST) -> bool:
    return any(
        isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        and node in ast.walk(block)
        for block in tree.body
    )


def packages(path: Path) -> set[str]:
    """First names of what a file imports, and of our own the first two."""
    names = [name.split(".") for name in imports(path)]
    return {".".join(parts[: 2 if parts[0] == "batchloom" else 1]) for parts in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_from_above(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): packages(path) & FORBIDDEN[package] for path in files}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("path", POLICY)
def test_what_decides_imports_neither_torch_nor_ray(path: str) -> None:
    assert not packages(ROOT / path) & {"torch", "ray"}


@pytest.mark.parametrize("package", ["models", "pipelines"])
def test_heavy_modules_are_imported_by_the_rooms_that_own_them_alone(package: str) -> None:
    """Ray belongs to the connection, the stream, what watches it and exports its figures, and replicas of several
    actors; torch to whoever computes."""
    owners = {
        "models": set(),
        "pipelines": {
            "pipelines/running/assembly.py",
            "pipelines/cluster.py",
            "pipelines/joining.py",
            "pipelines/own_ray.py",
            "pipelines/ray_data_actors.py",
            "pipelines/ray_worker.py",
            "pipelines/forecasting/rehearsing.py",
            "pipelines/running/deep.py",
            "pipelines/running/stream.py",
            "pipelines/replicas/spanning.py",
            "pipelines/telemetry/exporter.py",
            "pipelines/watching/memory_kills.py",
            "pipelines/watching/ray_servers.py",
            "pipelines/watching/roster.py",
            "pipelines/watching/watchdog.py",
        },
    }
    with_ray = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py") if "ray" in packages(p)}
    assert with_ray == owners[package]


def test_no_module_imports_another_in_a_circle() -> None:
    """Imports inside functions and for types alone count as well: who knows whom is a question of the text."""
    named = modules()
    knows = {
        name: {longest(found, named) for found in imports(path, with_types=True)} - {None, name}
        for name, path in named.items()
        if path.name != "__init__.py"  # a door knows all of its rooms, lazily
    }
    doors = {name for name, path in named.items() if path.name == "__init__.py"}
    while free := {name for name, others in knows.items() if not (others - doors) & set(knows)}:
        knows = {name: others for name, others in knows.items() if name not in free}
    assert not knows, f"these import each other: {sorted(knows)}"


def longest(found: str, named: dict[str, Path]) -> str | None:
    """The module that `batchloom.a.b.name` is imported from."""
    while found and found not in named:
        found = found.rpartition(".")[0]
    return found or None


def test_the_folders_at_the_top_are_never_imported_by_their_bare_names() -> None:
    """A user's own models.py or pipelines/ would come in place of ours, in Ray's workers at the latest."""
    folders = (ROOT / folder for folder in ("tests", "benchmarks", "examples"))
    ours = [*modules().values(), *(path for folder in folders for path in folder.rglob("*.py"))]
    bare = {str(path): {name.split(".")[0] for name in imports(path, with_types=True)} & set(ROOMS) for path in ours}
    wrong = {path: names for path, names in bare.items() if names}
    assert not wrong


@pytest.mark.parametrize(
    "statement",
    [
        "import batchloom",
        "import batchloom.models",
        "import batchloom.pipelines",
        "import batchloom.jobs.cli",
        "import batchloom.pipelines.planning.planner",
    ],
)
def test_doors_are_light(statement: str) -> None:
    code = f"import sys; {statement}; assert not {{'torch', 'ray', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["batchloom", "batchloom.models", "batchloom.pipelines"])
def test_no_public_name_is_hidden_by_a_module_of_the_same_name(package: str) -> None:
    """pipelines.run was once the module run.py as soon as anything had imported it."""
    door = import_module(package)
    folder = Path(door.__file__).parent
    inside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not inside & set(door.__all__)
    assert all(getattr(door, name) is not None for name in door.__all__)
