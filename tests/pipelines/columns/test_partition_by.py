"""Folders of a partitioned output: called as Hive calls them, and only by what the input has as partitions."""

from urllib.parse import quote

import pytest

from batchloom.pipelines.columns.given import partitions_of_path
from batchloom.pipelines.columns.partition_by import check_partition_by, partition_folder
from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.planning.source import Source

SHARDS = ["lang=en/day=1/a.parquet", "lang=de/day=1/a.parquet"]


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("en", "en"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("x=y?#", "x%3Dy%3F%23"),
        ("a b+c&d", "a b+c&d"),
        ("日本", "日本"),
        ("..", ".."),
        ("\n\x7f", "%0A%7F"),
        ("", "__HIVE_DEFAULT_PARTITION__"),
    ],
)
def test_values_are_escaped_as_in_hive_and_come_back(value, folder) -> None:
    shard = f"lang={quote(value, safe='')}/a.parquet"
    assert partition_folder(shard, ["lang"]) == f"lang={folder}/"
    assert partitions_of_path(partition_folder(shard, ["lang"]) + "part") == {"lang": value or None}


def test_folders_are_in_the_order_that_is_asked_for() -> None:
    assert partition_folder(SHARDS[0], ["day", "lang"]) == "day=1/lang=en/"
    assert partition_folder("lang=__HIVE_DEFAULT_PARTITION__/a", ["lang"]) == "lang=__HIVE_DEFAULT_PARTITION__/"
    assert partition_folder(SHARDS[0], []) == ""


@pytest.mark.parametrize(
    ("asked", "shards", "problem"),
    [
        (("kind",), SHARDS, r"\[kind\]: kind is no partition of the input\. The input has the partitions lang, day\."),
        (("kind",), ["a.parquet"], r"The input has no folders such as lang=en/ below those of input\.paths\."),
        (("lang", "lang"), SHARDS, "lang stands there twice"),
        (("lang",), [*SHARDS, "b.parquet"], r"lang is no partition of 1 of 3 files \(b\.parquet\)"),
        (("_k",), ["_k=1/a.parquet"], "readers skip folders that begin as _k does"),
        (("error",), ["error=1/a.parquet"], "error is a column of the output's own"),
        (("kind",), SHARDS, r"COPY \(FROM 'out/\*\.parquet'\) TO .* PARTITION_BY \(kind\)\);"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(asked, shards, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_partition_by(OutputConfig(path="out", partition_by=asked), [source(shard) for shard in shards], {"error"})
    check_partition_by(OutputConfig(path="out", partition_by=("lang", "day")), [*map(source, SHARDS)], {"error"})


def test_folders_are_those_of_a_tables_paths_where_these_tell_its_partitions() -> None:
    asked = OutputConfig(path="out", partition_by=("lang",))
    check_partition_by(asked, [source("lang=d%2Fe/a.parquet", (("lang", "d/e"),))], set())
    check_partition_by(asked, [source("lang=/a.parquet", (("lang", None),))], set())  # of deltalake, an empty text
    for path in ("x1/a.parquet", "lang=en/a.parquet"):
        with pytest.raises(ConfigError, match="lang is no partition of the input"):
            check_partition_by(asked, [source(path, (("lang", "d/e"),))], set())


def source(name: str, partitions: tuple[tuple[str, str | None], ...] | None = None) -> Source:
    return Source(name, name, 1, "", partitions=partitions)
