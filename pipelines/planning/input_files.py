"""Find the files of an input by listing its stores, and tell by their names what they are. It opens none of them."""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from typing import Any

from batchloom.models.patience import Patience
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, NoInputError, StoreError
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.formats.table import DOUBTFUL, FORMAT_OF, FORMATS, ending_of, format_of
from batchloom.pipelines.stores.connection import Connection, open_filesystem
from batchloom.pipelines.stores.listing import Listing, find, glob_folder, is_glob, matching, passed
from batchloom.pipelines.stores.storage import version_of
from batchloom.pipelines.tables.choice import FoundTable, Pinned, find_table, only_table, open_table
from batchloom.pipelines.tables.columns import TableParquet
from batchloom.pipelines.tables.table import LiveFile

OTHERS = "linked folder or special file"  # beside endings of files, among what is skipped

NO_UTF8 = re.compile("[\ud800-\udfff]")  # Python's stand-ins for bytes of a name


class Found(Enum):
    """How a file came to be listed."""

    NAMED = "by its own name"
    MATCHED = "by a pattern"
    INSIDE = "in a folder"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as a listing shows it."""

    path: str
    """The path on its filesystem."""
    folder: str
    """The folder that its pattern starts from."""
    size: int | None
    """Bytes; None from filesystems that do not list it."""
    version: str
    """The etag or modification time, as the filesystem gives it; empty where it gives none."""
    found: Found = Found.NAMED
    live: LiveFile | None = None
    """What its table says of it."""


@dataclass(frozen=True)
class InputFiles:
    """The files of an input."""

    format: str
    """Of all of them: a name in FORMATS."""
    files: Sequence[InputFile]
    """In a fixed order, each once."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many files of folders and patterns are no data of this format, by their endings."""
    table: TableParquet | None = None
    """How they are read, where they are those of a version of a table."""


def find_files(config: InputConfig, patience: Patience, pinned: Pinned = lambda: None) -> InputFiles:
    """Return the files that the paths of an input match. `pinned`: as `open_table` takes it.

    Raises: InputError where paths match nothing or cannot be listed, lie in several stores, hold several formats, or
    are in a table or around one; StoreError where the store had trouble for longer than `patience` allows.
    """
    _refuse_several_filesystems(config)
    known: dict[str, str | None] = {}
    listings = {pattern: _listed(config, pattern, patience, known) for pattern in config.paths}
    table = only_table(config, {pattern: listing.table for pattern, listing in listings.items()})
    filesystem, _ = open_filesystem(config.paths[0], config.storage_options)
    filesystem.invalidate_cache()  # it remembers what it listed: 2 kB a file
    if table is not None:
        return _of_table(config, patience, table, pinned)
    listed = {pattern: listing.files for pattern, listing in listings.items()}
    every = _each_once(listed.values())
    chosen = config.format or _only_format(every)
    own = {ending_of(file.path) for file in every} & set(FORMATS[chosen].endings)
    own = own - set(DOUBTFUL) or own
    files = [file for file in every if _is_data(file, own)]
    taken = {file.path for file in files}
    others = {path for listing in listings.values() for path in listing.others}
    _refuse_unmatched(listings, taken)
    _refuse_unwritable(taken)
    skipped = Counter(ending_of(file.path) for file in every if file.path not in taken)
    return InputFiles(chosen, files, skipped + Counter({OTHERS: len(others)}))


def _each_once(listed: Iterable[Sequence[InputFile]]) -> list[InputFile]:
    """Return the files as they were found first; one that is named anywhere counts as named."""
    once: dict[str, InputFile] = {}
    for file in chain.from_iterable(listed):
        before = once.setdefault(file.path, file)
        if file.found is Found.NAMED:
            once[file.path] = replace(before, found=Found.NAMED)
    return list(once.values())


def _only_format(files: Sequence[InputFile]) -> str:
    """Return the format of the files whose names tell one; Parquet where none does. Raises: InputError for several."""
    counts = Counter(ending for file in files if (ending := ending_of(file.path)) in FORMAT_OF)
    certain = {ending: count for ending, count in counts.items() if ending not in DOUBTFUL} or counts
    formats = {FORMAT_OF[ending] for ending in certain}
    if len(formats) > 1:
        raise InputError(
            f"The input holds files of several formats ({_counted(certain)}), and a job reads one. "
            f"Set input.format to one of {', '.join(sorted(formats))} to read those files alone, or narrow input.paths."
        )
    return next(iter(formats), Parquet.name)


def _is_data(file: InputFile, own: Collection[str]) -> bool:
    """Return whether a file is read. `own`: endings of the job's format that some files have."""
    if file.found is Found.NAMED or (ending := ending_of(file.path)) in own:
        return True
    return file.found is Found.MATCHED and not own and ending not in FORMAT_OF


def _refuse_unmatched(listings: Mapping[str, "_Listed"], taken: Collection[str]) -> None:
    lines = []
    for pattern, listing in listings.items():
        if not any(file.path in taken for file in listing.files):
            others = Counter(ending_of(file.path) for file in listing.files) + Counter({OTHERS: len(listing.others)})
            there = f" There is: {_counted(others)}." if others else ""
            lines.append(f"Input path {pattern!r} matches no file.{there}")
    if lines:
        raise NoInputError(
            "\n".join(lines) + " Check the spelling and the pattern; a folder is searched for files that end in "
            f"{', '.join(FORMAT_OF)}, or as those of input.format do. Others are named one by one, or by a glob."
        )


def _refuse_unwritable(paths: Iterable[str]) -> None:
    """Raise InputError for names that are no UTF-8, which systems of before have: they cannot be written to a part."""
    bad = sorted(filter(NO_UTF8.search, paths))
    if bad:
        raise InputError(
            f"The names of {len(bad)} input files are no UTF-8 ({bad[0]!a}). Rename them, such as by "
            "convmv -f latin1 -t utf8 --notest -r on their folder."
        )


def words_for_skipped(skipped: Mapping[str, int]) -> str:
    """Return a sentence on the files that are not read; empty where there are none."""
    if not skipped:
        return ""
    files, names = ("1 file", "its name") if sum(skipped.values()) == 1 else (f"{sum(skipped.values())} files", "names")
    return f"{files} of the input skipped, by {names}: {_counted(skipped)}."


def _counted(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(endings.items()))


def _refuse_several_filesystems(config: InputConfig) -> None:
    opened = {path: open_filesystem(path, config.storage_options)[0] for path in config.paths}
    first, *others = opened
    for path in others:
        if opened[path] != opened[first]:
            raise InputError(
                f"input.paths: {first!r} and {path!r} lie in different stores, and a job reads from one. "
                "Run a job for each, with an output of its own."
            )


def _of_table(config: InputConfig, patience: Patience, found: FoundTable, pinned: Pinned) -> InputFiles:
    """Return the data files of a table's version. Raises: as `open_table`; InputError where files are gone."""
    table = open_table(config, patience, found, pinned)
    format, paths = table.format, [file.path for file in table.files]
    connection = Connection(config.paths[0], config.storage_options, patience)

    def infos(filesystem: Any) -> Listing:
        outside = [path for path in paths if not path.startswith(f"{found.folder}/")]
        there = {path: filesystem.info(path) for path in outside if filesystem.exists(path)}
        listed = found.infos
        if not {*listed, *outside}.issuperset(paths):  # written since it was listed, or gone
            filesystem.invalidate_cache()
            listed = find(filesystem, found.folder)
        return there | _followed(filesystem, {path: listed[path] for path in paths if path in listed})

    there = connection.call(f"Looking for files of the {format.kind} table {found.folder}", "list", infos)
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise InputError(
            f"The {format.kind} table {found.folder} has {len(twice)} files twice, so their rows are in it twice "
            f"({twice[0]}). Remove one of each from the table, or write its rows to another."
        )
    if gone := [path for path in paths if path not in there]:
        raise InputError(
            f"{len(gone)} of {len(paths)} files of {format.word} {format.version} of the {format.kind} table "
            f"{found.folder} are not there any more ({gone[0]}): they were removed, as VACUUM and the expiry of "
            f"snapshots do with what newer ones do not use. The newest has input.version: {format.newest}."
        )
    files = [
        InputFile(file.path, found.folder, there[file.path]["size"], version_of(there[file.path]), Found.INSIDE, file)
        for file in sorted(table.files, key=lambda file: file.path)
    ]
    if not files:
        raise NoInputError(f"{format.word.capitalize()} {format.version} of {found.folder} has no files, so no rows.")
    return InputFiles(Parquet.name, files, table=format)


@dataclass(frozen=True)
class _Listed:
    """What a path of the input names."""

    files: Sequence[InputFile]
    """In a fixed order, without hidden ones."""
    table: FoundTable | None
    """The table that it is."""
    others: Sequence[str] = ()
    """Pipes, devices, and links to folders, which nobody looks into: one called `latest` would give rows twice."""


def _listed(config: InputConfig, pattern: str, patience: Patience, known: dict[str, str | None]) -> _Listed:
    """`known`: as `find_table` takes it.

    Raises: InputError where the path cannot be listed, or is in a table or around one; StoreError.
    """
    connection = Connection(pattern, config.storage_options, patience)
    try:
        doing = f"Listing input path {pattern!r}"
        path = connection.path.rstrip("/")
        folder, seen, matched, how = connection.call(doing, "list", lambda one: _found(one, path))
        found = {path: info for path, info in matched.items() if info["type"] == "file"}
        table = find_table(connection, folder, seen, list(found), known)
    except StoreError as error:
        if error.trouble is Trouble.PASSING:
            raise
        raise InputError(str(error)) from error
    files = [InputFile(path, folder, found[path]["size"], version_of(found[path]), how) for path in sorted(found)]
    folders = {path for path, info in seen.items() if info["type"] == "directory"}
    return _Listed(files, table, sorted(matched.keys() - found.keys() - folders))


def _found(filesystem: Any, path: str) -> tuple[str, Listing, Listing, Found]:
    """Return (folder that the path starts from, all that was listed, infos of what is matched, how it is found)."""
    filesystem.invalidate_cache()
    try:
        if is_glob(path) and not filesystem.exists(path):  # a folder may be called "2024[1]"
            folder, how = glob_folder(path), Found.MATCHED
            seen = passed(filesystem, path)
            found = _followed(filesystem, _visible(matching(seen, path), folder, path))
            for dataset in [p for p, info in found.items() if info["type"] == "directory" and format_of(p)]:
                below = find(filesystem, dataset)  # Spark writes folders that end in .parquet
                seen, found = seen | below, found | _followed(filesystem, _visible(below, dataset))
        elif filesystem.isdir(path) or (info := filesystem.info(path))["type"] == "directory":
            folder, how, seen = path, Found.INSIDE, find(filesystem, path)
            found = _followed(filesystem, _visible(seen, path))
        else:
            folder, how, seen, found = posixpath.dirname(path), Found.NAMED, {}, {path: info}
    except FileNotFoundError:
        return "", {}, {}, Found.NAMED
    return folder, seen, found, how


def _followed(filesystem: Any, found: Listing) -> Listing:
    """Replace symbolic links by their targets' infos: a listing describes the link, and a hub's cache is all links.

    A broken link counts as a file, so that it is reported with those that cannot be read.
    """

    def behind(path: str) -> dict[str, Any]:
        info: dict[str, Any] = filesystem.info(path) if filesystem.exists(path) else {"type": "file", "size": None}
        return info

    return {path: behind(path) if info["type"] == "other" else info for path, info in found.items()}


def _visible(found: Listing, root: str, pattern: str = "") -> Listing:
    """Return what is not hidden below `root`: names that begin with a dot or an underscore are no data, unless the
    pattern spells them out, or they are those of Hive's partitions."""
    spelt = pattern.split("/")

    def is_hidden(name: str) -> bool:
        return name.startswith((".", "_")) and not (name.startswith("_") and "=" in name) and name not in spelt

    return {path: info for path, info in found.items() if not any(map(is_hidden, path.removeprefix(root).split("/")))}
