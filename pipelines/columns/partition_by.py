"""The folders of an output that is partitioned: `lang=en/`, by values that Hive partitions of the input have."""

from collections.abc import Sequence

from batchloom.pipelines.columns.given import NO_VALUE, partitions

# What Hive and Spark write as %XX in the names of partitions. Other characters stand for themselves.
ESCAPED = frozenset("\"#%'*/:=?\\{[]^\x7f") | frozenset(map(chr, range(0x20)))


def partition_folder(shard: str, keys: Sequence[str]) -> str:
    """Return the folder, below the output's, of rows of a shard, which has these partitions: `lang=en/`; "" of none."""
    values = partitions(shard) if keys else {}
    return "".join(f"{escaped(key)}={escaped(values.get(key) or '') or NO_VALUE}/" for key in keys)


def escaped(text: str) -> str:
    """Return a value as the name of a partition has it."""
    return "".join(f"%{ord(character):02X}" if character in ESCAPED else character for character in text)
