"""The corpus of the demo's models: docstrings of many packages, split by whole packages. It trains nothing.

    python examples/demo_models/corpus.py build/demo_models

Fetches the wheels of packages.txt, reads their docstrings and those of the installed packages (nothing is imported) and
writes train.parquet and held_out.parquet, the packages of held_out.txt. What shares twelve words in a row with a
held-out text is left out of training: packages carry copies of each other, and of each other's documentation.
"""

import argparse
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from docstrings import HELD_OUT, INSTALLED, Row, docstrings, package_of  # noqa: E402

MAX_ROWS_PER_PACKAGE = 3000  # some packages are generated: thousands of docstrings of one form
SHINGLE_WORDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where packages/, train.parquet and held_out.parquet go")
    folder = parser.parse_args().folder
    packages = folder / "packages"
    fetch((HERE / "packages.txt").read_text().split(), packages)
    roots = [INSTALLED, *sorted(path for path in packages.iterdir() if path.is_dir())]
    with ProcessPoolExecutor() as pool:
        rows = list(once(chain.from_iterable(pool.map(rows_below, roots))))
    held_out = [row for row in rows if package_of(row["module"]) in HELD_OUT]
    known = set(chain.from_iterable(map(shingles, held_out)))
    train = [row for row in rows if package_of(row["module"]) not in HELD_OUT and known.isdisjoint(shingles(row))]
    for name, part in (("train", train), ("held_out", held_out)):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet", compression="zstd")
        print(f"{name}: {len(part):,} docstrings of {len({package_of(row['module']) for row in part})} packages")


def fetch(requirements: Iterable[str], folder: Path) -> None:
    """The Python files of each requirement's wheel, in a folder of its own, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda requirement: fetch_one(requirement, folder / requirement), requirements))


def fetch_one(requirement: str, folder: Path) -> None:
    if folder.exists():
        return
    with TemporaryDirectory(dir=folder.parent) as scratch:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, f"--dest={scratch}", requirement]
        subprocess.run(command, check=True)
        (unpacked := Path(scratch) / "unpacked").mkdir()
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked, [name for name in archive.namelist() if name.endswith(".py")])
        unpacked.rename(folder)


def rows_below(root: Path) -> list[Row]:
    return list(docstrings(root))


def once(rows: Iterable[Row]) -> Iterator[Row]:
    """Each text once, from the first package that has it, and at most so many of one package."""
    seen: set[str] = set()
    num_of: Counter[str] = Counter()
    for row in rows:
        package = package_of(row["module"])
        if row["text"] not in seen and "_vendor" not in row["module"] and num_of[package] < MAX_ROWS_PER_PACKAGE:
            seen.add(row["text"])
            num_of[package] += 1
            yield row


def shingles(row: Row) -> Iterator[int]:
    """A hash of every run of words of SHINGLE_WORDS in the text."""
    words = row["text"].lower().split()
    return (hash(tuple(words[at : at + SHINGLE_WORDS])) for at in range(len(words) - SHINGLE_WORDS + 1))


if __name__ == "__main__":
    main()
