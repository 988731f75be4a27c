"""The demo's corpus: docstrings of installed Python packages, which are parsed and not imported, as Parquet shards.

A docstring is a document with a summary by its author: the body is the text, the first line is the reference.
"""

import ast
import hashlib
import io
import sysconfig
import warnings
from collections.abc import Container, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MIN_BODY_CHARACTERS = 200
MIN_REFERENCE_WORDS, MAX_REFERENCE_CHARACTERS = 3, 120
NUM_SHARDS = 4
MAX_ROW_GROUP_ROWS = 1000
FOUND_PER_ROW = 4

INSTALLED = Path(sysconfig.get_paths()["purelib"])

HELD_OUT = frozenset((Path(__file__).parent / "demo_models" / "held_out.txt").read_text().split())
"""Packages that were held out of the training of the demo's models."""

Row = dict[str, str]


def corpus(num_rows: int) -> list[bytes]:
    """Return at most `num_rows` docstrings of installed HELD_OUT packages as Parquet files, the same on every call.

    Columns: id (module:name), text (the body), reference (the first line), module. Each file has several row groups.
    """
    # Chosen from several times as many, so that a small corpus does not consist of a few whole modules.
    found = islice(docstrings(INSTALLED, HELD_OUT), FOUND_PER_ROW * num_rows)
    rows = sorted(found, key=lambda row: _shuffle(row["id"]))[:num_rows]
    shards = [rows[len(rows) * i // NUM_SHARDS : len(rows) * (i + 1) // NUM_SHARDS] for i in range(NUM_SHARDS)]
    return [_parquet(shard) for shard in shards if shard]


def docstrings(root: Path, packages: Container[str] | None = None) -> Iterator[Row]:
    """Yield each docstring below `root` that can be summarized once, in a fixed order that mixes packages.

    `packages`: only of these.
    """
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    chosen = (file for file in files if packages is None or file.parts[0].removesuffix(".py") in packages)
    names = sorted((file.as_posix() for file in chosen), key=_shuffle)
    seen: set[str] = set()
    for name in names:
        for row in _of_file(root / name, name):
            if row["text"] not in seen and row["id"] not in seen:
                seen |= {row["text"], row["id"]}
                yield row


def package_of(module: str) -> str:
    """Return the top-level package of a module: `networkx` for `networkx.algorithms.dag`."""
    return module.partition(".")[0]


def _shuffle(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _of_file(path: Path, name: str) -> Iterator[Row]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other packages' sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # templates and test data that only look like Python
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield from _of_node(tree, module, "")


def _of_node(node: ast.AST, module: str, name: str) -> Iterator[Row]:
    """Yield the docstring of `node`, then those of the classes and functions in it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        row = _row(ast.get_docstring(node) or "", module, name)
        if row:
            yield row
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _of_node(child, module, f"{name}.{child.name}".lstrip("."))


def _row(docstring: str, module: str, name: str) -> Row | None:
    """Return a docstring's row; None if it has no body to summarize or no first line that can be a summary."""
    text = docstring.encode(errors="replace").decode()  # a lone surrogate is legal in source and not in Parquet
    reference, _, body = text.partition("\n\n")  # the first line; longer paragraphs are not used
    reference, body = reference.strip(), body.strip()
    is_line = "\n" not in reference and len(reference) <= MAX_REFERENCE_CHARACTERS
    is_summary = is_line and len(reference.split()) >= MIN_REFERENCE_WORDS
    if len(body) < MIN_BODY_CHARACTERS or not is_summary:
        return None
    return {"id": f"{module}:{name or '(module)'}", "text": body, "reference": reference, "module": module}


def _parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    schema = pa.schema([(column, pa.string()) for column in ("id", "text", "reference", "module")])
    row_group_size = min(MAX_ROW_GROUP_ROWS, -(-len(rows) // 3))
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=row_group_size, compression="zstd")
    return sink.getvalue()
