"""`batchloom verify --deep` on the command line: Ray tasks read every byte."""

import os
import shutil
from pathlib import Path

from batchloom.jobs.exit_codes import ExitCode
from tests.jobs.conftest import run_command


def test_only_a_deep_check_finds_bytes_that_were_flipped_in_place(batchloom, finished, tmp_path: Path) -> None:
    """Of the right size and time. Ray's C++ side informed of its log level on stderr."""
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)  # times are copied too
    part = sorted(output.glob("part-*.parquet"))[1]
    stat = part.stat()
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    quick = batchloom("verify", output)
    assert (quick.code, quick.err) == (ExitCode.OK, "")
    deep = run_command("verify", "--deep", "--json", output)
    assert (deep.code, deep.err) == (ExitCode.FAILED, "")
    (found,) = deep.json
    assert found["problems"] == [f"{part.name}: its bytes are not the ones that were written: its seal is broken"]
    assert found["ok"] is False
