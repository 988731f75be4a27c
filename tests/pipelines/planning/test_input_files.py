"""Which files of folders and globs are data, of which format, and what is said of the others."""

import logging
import os
from pathlib import Path

import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, NoInputError
from batchloom.pipelines.planning.input_files import OTHERS, find_files
from batchloom.pipelines.planning.shards import find_shards


def found(folder: Path, pattern: str = "", **options: str) -> tuple[str, list[str], dict[str, int]]:
    files = find_files(InputConfig(paths=(str(folder / pattern),), **options), Patience())
    return files.format, [file.path.removeprefix(f"{folder}/") for file in files.files], dict(files.skipped)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_ending_tells_the_format_and_what_is_no_data_is_counted(tmp_path) -> None:
    touch(
        tmp_path,
        "a.jsonl",
        "b.ndjson",
        "c.JSONL.gz",
        "README.md",
        "LICENSE.txt",
        "info.json",
        "x/NOTES",
        "x/d.jsonl.zst",
    )
    expected = ["a.jsonl", "b.ndjson", "c.JSONL.gz", "x/d.jsonl.zst"]
    assert found(tmp_path) == ("jsonl", expected, {".md": 1, ".txt": 1, ".json": 1, "": 1})


def test_a_link_to_a_folder_is_counted_among_what_is_skipped(tmp_path) -> None:
    """Its files were left out without a word. They are not read: a link called `latest` would give rows twice."""
    touch(tmp_path, "in/2024/a.parquet", "only/.hidden")
    (tmp_path / "in" / "latest").symlink_to(tmp_path / "in" / "2024")
    (tmp_path / "only" / "link").symlink_to(tmp_path / "in" / "2024")
    assert found(tmp_path / "in") == ("parquet", ["2024/a.parquet"], {OTHERS: 1})
    assert found(tmp_path / "in", "**") == ("parquet", ["2024/a.parquet"], {OTHERS: 1})
    assert found(tmp_path / "only", "link")[1] == ["link/a.parquet"]
    os.mkfifo(tmp_path / "only" / "pipe.jsonl")
    with pytest.raises(NoInputError, match=r"matches no file\. There is: 1 linked folder or special file\."):
        found(tmp_path / "only", "pipe.jsonl")
    os.remove(tmp_path / "only" / "pipe.jsonl")
    with pytest.raises(NoInputError, match=r"matches no file\. There is: 1 linked folder or special file\."):
        found(tmp_path / "only")


def test_names_that_are_no_utf8_are_refused(tmp_path) -> None:
    """They ended the job with a UnicodeEncodeError, when its first part was written."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv")).touch()
    touch(tmp_path, "é.csv", "a\nb.csv")
    with pytest.raises(InputError, match=r"The names of 1 input files are no UTF-8 \('.*caf\\udce9\.csv'\)\. Rename"):
        found(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.txt", "a.csv", "a.tsv.bz2"])
def test_a_lone_file_is_read_by_its_ending(tmp_path, name) -> None:
    touch(tmp_path, name)
    assert found(tmp_path)[1] == found(tmp_path, name)[1] == found(tmp_path, "*")[1] == [name]
    assert found(tmp_path)[0] == {"json": "jsonl", "txt": "text"}.get(name.split(".")[1], name.split(".")[1])


def test_several_formats_are_refused_unless_the_job_names_one(tmp_path) -> None:
    touch(tmp_path, "a.parquet", "b.jsonl.gz", "c.jsonl", "d.log")
    with pytest.raises(InputError, match=r"several formats \(2 \.jsonl, 1 \.parquet\).*to one of jsonl, parquet"):
        found(tmp_path)
    assert found(tmp_path, format="jsonl") == ("jsonl", ["b.jsonl.gz", "c.jsonl"], {".parquet": 1, ".log": 1})
    assert found(tmp_path, "*.log", format="jsonl")[1] == ["d.log"]
    assert found(tmp_path, "d.log", format="csv") == ("csv", ["d.log"], {})
    with pytest.raises(NoInputError, match=r"matches no file\. There is: 2 \.jsonl, 1 \.log, 1 \.parquet"):
        found(tmp_path, format="csv")


def test_names_without_a_known_ending_are_parquet_where_nothing_says_more(tmp_path) -> None:
    touch(tmp_path, "part-0", "part-1")
    assert found(tmp_path, "part-*") == ("parquet", ["part-0", "part-1"], {})
    assert found(tmp_path, "part-0") == ("parquet", ["part-0"], {})


@pytest.mark.parametrize("pattern", ["", "**/*.parquet", "**", "*/*.parquet"])
def test_hidden_files_and_folders_are_no_data_for_folders_and_globs_alike(tmp_path, pattern) -> None:
    """A recursive glob read Spark's and Jupyter's leftovers, and rows came twice."""
    touch(tmp_path, "day=1/a.parquet", "_temporary/0/day=1/a.parquet", "day=1/.ipynb_checkpoints/a.parquet")
    touch(tmp_path, "_SUCCESS", "day=1/_metadata", "day=1/.a.parquet.crc", "_key=1/b.parquet")
    assert found(tmp_path, pattern)[1:] == (["_key=1/b.parquet", "day=1/a.parquet"], {})
    assert found(tmp_path, "_temporary/**/*.parquet")[1] == ["_temporary/0/day=1/a.parquet"]
    assert found(tmp_path, "*/.ipynb_checkpoints/*")[1] == ["day=1/.ipynb_checkpoints/a.parquet"]


def test_what_is_skipped_is_said(tmp_path, caplog) -> None:
    (tmp_path / "a.txt").write_text("a line")
    touch(tmp_path, "b.md", "c.md", "d")
    with caplog.at_level(logging.WARNING):
        find_shards(InputConfig(paths=(str(tmp_path),)))
    assert "3 files of the input skipped, by names: 1 without an ending, 2 .md." in caplog.text


@pytest.mark.parametrize("stem", ["a::b", "a?b", "a b", "[1]", "a#b%20", "日本"])
def test_a_file_of_any_name_is_found_once_by_its_folder_and_by_its_name(tmp_path, stem) -> None:
    name = f"{stem}.parquet"
    touch(tmp_path, name)
    assert found(tmp_path)[1] == [name] == found(tmp_path, name)[1]


def test_a_file_that_is_named_is_read_whatever_folder_it_is_in(tmp_path) -> None:
    touch(tmp_path, "a.jsonl", "b.log")
    for paths in ((str(tmp_path), str(tmp_path / "b.log")), (str(tmp_path / "b.log"), str(tmp_path))):
        files = find_files(InputConfig(paths=paths), Patience())
        assert sorted(Path(file.path).name for file in files.files) == ["a.jsonl", "b.log"]
        assert not files.skipped
