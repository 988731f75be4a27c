"""The folders of an output that is partitioned: `lang=en/`, by Hive partitions that the input has."""

from collections import Counter
from collections.abc import Collection, Sequence

from batchloom.pipelines.columns.given import NO_VALUE, partitions, partitions_of_path
from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.planning.source import Source

# What Hive and Spark write as %XX in the names of partitions. Other characters stand for themselves.
ESCAPED = frozenset("\"#%'*/:=?\\{[]^\x7f") | frozenset(map(chr, range(0x20)))


def partition_folder(shard: str, keys: Sequence[str]) -> str:
    """Return the folder, below the output's, of the rows of a shard: `lang=en/`, and nothing without keys.

    A key that the shard does not have is null there; null and an empty text are one folder, as in Hive.
    """
    values = partitions_of_path(shard) if keys else {}
    return "".join(f"{_escaped(key)}={_escaped(values.get(key) or '') or NO_VALUE}/" for key in keys)


def check_partition_by(output: OutputConfig, sources: Collection[Source], own: Collection[str]) -> None:
    """Raise ConfigError where parts cannot lie in the folders that the output asks for: a part is rows of shards, so
    that a column has to be one value in each shard. `own`: names that the output gives to its columns.
    """
    asked = output.partition_by
    keys_of = {source.name: _keys(source) for source in sources}
    known = Counter(key for keys in keys_of.values() for key in keys)
    problems = [f"{key} stands there twice" for key, count in Counter(asked).items() if count > 1]
    problems += [f"{key} is a column of the output's own" for key in asked if key in own]
    problems += [f"readers skip folders that begin as {key} does" for key in asked if key.startswith(("_", "."))]
    for key in dict.fromkeys(asked):
        if not known[key]:
            problems.append(f"{key} is no partition of the input")
        elif known[key] < len(keys_of):
            without = next(name for name, keys in keys_of.items() if key not in keys)
            problems.append(f"{key} is no partition of {len(keys_of) - known[key]} of {len(keys_of)} files ({without})")
    if problems:
        raise ConfigError(f"output.partition_by: [{', '.join(asked)}]: {'; '.join(problems)}. {_advice(output, known)}")


def _keys(source: Source) -> list[str]:
    """Return the partitions of a file, of a table's those that its path tells as well: a part knows paths alone."""
    told = partitions_of_path(source.name)
    return [key for key, value in partitions(source).items() if key in told and (told[key] or None) == (value or None)]


def _advice(output: OutputConfig, known: Collection[str]) -> str:
    there = f"the partitions {', '.join(known)}" if known else "no folders such as lang=en/ below those of input.paths"
    written, form = ("*.parquet", "parquet") if output.format == "parquet" else (f"*{output.ending}", "json")
    asked = ", ".join(output.partition_by)
    return (
        f"The input has {there}. By any other column partition the output when it is finished, in DuckDB: "
        f"COPY (FROM '{output.path}/{written}') TO 'partitioned' (FORMAT {form}, PARTITION_BY ({asked}));"
    )


def _escaped(text: str) -> str:
    return "".join(f"%{ord(character):02X}" if character in ESCAPED else character for character in text)
