"""Imports point down: jobs -> pipelines -> models. What decides imports neither torch nor ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "models": {"ray", "pyarrow", "pipelines", "jobs", "typer", "rich", "pydantic", "transformers"},
    "pipelines": {"jobs", "typer", "rich", "pydantic", "transformers"},
    "jobs": {"transformers"},
}
POLICY = [
    "pipelines/bucket.py",
    "pipelines/units.py",
    "pipelines/ledger.py",
    "pipelines/fingerprint.py",
    "pipelines/metrics.py",
    *(f"pipelines/tasks/{path.name}" for path in sorted((ROOT / "pipelines/tasks").glob("*.py"))),
    "models/generation/params.py",
    "models/generation/scheduler.py",
    "models/generation/sequence.py",
]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """First names of the modules that a file imports; those under `if TYPE_CHECKING` do not run and do not count."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else [node for node in ast.walk(tree) if not _is_type_checking(tree, node)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def _is_type_checking(tree: ast.Module, node: ast.AST) -> bool:
    return any(
        isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        and node in ast.walk(block)
        for block in tree.body
    )


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_from_above(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in files}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("path", POLICY)
def test_what_decides_imports_neither_torch_nor_ray(path: str) -> None:
    assert not imports(ROOT / path) & {"torch", "ray"}


@pytest.mark.parametrize("package", ["models", "pipelines"])
def test_heavy_modules_are_imported_by_the_rooms_that_own_them_alone(package: str) -> None:
    """Ray belongs to the stream, the count of starts and replicas of several actors; torch to whoever computes."""
    owners = {"models": set(), "pipelines": {"pipelines/stream.py", "pipelines/starts.py", "pipelines/spanning.py"}}
    with_ray = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py") if "ray" in imports(p)}
    assert with_ray == owners[package]


@pytest.mark.parametrize(
    "statement", ["import models", "import pipelines", "import jobs.cli", "import pipelines.job_plan"]
)
def test_doors_are_light(statement: str) -> None:
    code = f"import sys; {statement}; assert not {{'torch', 'ray', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    """pipelines.run was once the module run.py as soon as anything had imported it."""
    for package in ("models", "pipelines"):
        door = __import__(package)
        assert not {path.stem for path in (ROOT / package).glob("*.py")} & set(door.__all__)
