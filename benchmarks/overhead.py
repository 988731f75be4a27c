"""What the pipeline adds to the engine: a job's wall time after start-up, over the seconds its engine was busy.

    python benchmarks/overhead.py [--rows 2000] [--rows-per-unit 100]

Rows are docstrings of the installed packages; the model is the demo's. A small model is the hard case: the larger the
model, the smaller the share of reading, tokenizing, shipping and writing.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

import pipelines
from pipelines.config import InputConfig, JobConfig, OutputConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from demo_model import random_model  # noqa: E402
from docstrings import corpus  # noqa: E402

TARGET = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rows-per-unit", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), arguments.rows, arguments.rows_per_unit)
        manifest = pipelines.run(job)
    timing = manifest.timing
    wall = timing["wall_seconds"] - timing["startup_seconds"]
    busy = timing["engine_busy_seconds"]
    print(f"rows {manifest.totals['rows']}, units {manifest.totals['units']}")
    print(f"start-up {timing['startup_seconds']:.1f} s, then wall {wall:.1f} s, engine busy {busy:.1f} s")
    print(f"wall over busy {wall / busy:.3f} (target {TARGET})")


def make_job(folder: Path, num_rows: int, rows_per_unit: int) -> JobConfig:
    shards = corpus(num_rows)
    files = {f"corpus/{number:02d}.parquet": shard for number, shard in enumerate(shards)}
    texts = (text for shard in shards for text in pq.read_table(io.BytesIO(shard))["text"].to_pylist())
    files |= {f"model/{name}": content for name, content in random_model(texts).items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return JobConfig(
        task="summarization",
        model=str(folder / "model"),
        input=InputConfig(paths=(str(folder / "corpus"),), rows_per_unit=rows_per_unit),
        output=OutputConfig(path=str(folder / "out")),
        task_options={"long_documents": "truncate"},
    )


if __name__ == "__main__":
    main()
