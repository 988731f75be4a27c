"""The demo: docstrings of installed packages in, summaries out, through the commands that a person types.

    python examples/demo.py --rows 300

The packages are those that the demo's model never read (demo_models/held_out.txt). Everything that it makes lies in
build/demo: corpus/, job.yaml, summaries/, report.html. A second call finds the work done and says so.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from docstrings import corpus

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path("examples/demo_models/docs-bart-mini")

JOB = """\
# weights {digest}
task: summarization
model: {model}
input:
  paths: [{folder}/corpus/*.parquet]
  text_column: text
  keep_columns: [id, reference, module]
  rows_per_unit: {rows_per_unit}
output:
  path: {folder}/summaries
task_options:
  long_documents: truncate
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarize the documentation of Python packages installed here.")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="docstrings to summarize (default: 300)")
    parser.add_argument("--folder", default="build/demo", help="where everything goes (default: build/demo)")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error("--rows must be at least 1.")
    os.chdir(ROOT)  # so that the paths in the job file and in what is printed are those of a person in the checkout
    started = time.monotonic()
    prepare(Path(arguments.folder), arguments.rows)
    output, report = f"{arguments.folder}/summaries", f"{arguments.folder}/report.html"
    commands = [
        ["run", f"{arguments.folder}/job.yaml"],
        ["verify", output],
        ["show", output, "--columns", "reference,summary_text"],
        ["report", output, "--html", report],
    ]
    for command in commands:
        code = batchloom(*command)
        if code:
            return code
    print(f"\nAll in {time.monotonic() - started:.0f} s. The summaries: {output}/*.parquet. The report: {report}")
    return 0


def prepare(folder: Path, num_rows: int) -> None:
    """Write corpus and job file; an output of another corpus or model makes room."""
    shards = corpus(num_rows)
    found = sum(pq.read_metadata(io.BytesIO(shard)).num_rows for shard in shards)
    print(f"Corpus: {found:,} docstrings of Python packages installed here, as {len(shards)} shards")
    print(f"Model: {MODEL}, which was trained on docstrings of other packages")
    files = {f"corpus/docstrings-{number:02d}.parquet": shard for number, shard in enumerate(shards)}
    rows_per_unit = min(250, max(1, num_rows // 12))
    job = JOB.format(digest=digest(MODEL), model=MODEL, folder=folder, rows_per_unit=rows_per_unit)
    if write(folder, files | {"job.yaml": job.encode()}):
        shutil.rmtree(folder / "summaries", ignore_errors=True)


def digest(folder: Path) -> str:
    """Stands in the job file, so that another model with the same name makes another job."""
    contents = (path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:12]


def write(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write what differs from what is there; True if anything did. Equal files stay as they are, so a job resumes."""
    stale = [path for path in folder.glob("corpus/*") if f"corpus/{path.name}" not in files]
    differing = {
        folder / name: content
        for name, content in files.items()
        if not (folder / name).exists() or (folder / name).read_bytes() != content
    }
    for path in stale:
        path.unlink()
    for path, content in differing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return bool(stale or differing)


def batchloom(*arguments: str) -> int:
    """Say the command, run it, and give back its exit code."""
    print(f"\n$ batchloom {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "jobs", *arguments], check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the command that ran has said what that means
        sys.exit(130)
