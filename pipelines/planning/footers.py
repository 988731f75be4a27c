"""Footers reads what planning needs of many files at once, with patience. It knows no format."""

import threading
from dataclasses import replace
from typing import Any

import pyarrow as pa

from batchloom.models.patience import Patience
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import StoreError
from batchloom.pipelines.formats.base import Columns, Footer, Format
from batchloom.pipelines.formats.footer import FIRST_GUESS
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.patient_file import PatientFile, Positioned

LARGEST_GUESS = 1 << 20  # bytes of a footer


class Footers:
    """Reads the footers of a job's files; what the first has shown to be permitted is known for the others.

    May be used by several threads.
    """

    def __init__(self, config: InputConfig, patience: Patience, format: Format, columns: Columns | None) -> None:
        self._url, self._options, self._patience = config.paths[0], config.storage_options, patience
        self._format, self._columns = format, columns
        self._known: set[str] = set()
        self._schemas: dict[bytes, pa.Schema] = {}
        self._guess = FIRST_GUESS
        self._largest = 0
        self._of_thread = threading.local()

    def read(self, path: str, size: int | None) -> Footer | Exception:
        """Return the footer, or what is wrong. Bytes that arrived and do not decode are read a second time.

        `size` of the file as it was listed, None where it was not: with it, it is read without a handle.
        """
        try:
            return self._opened(path) if size is None else self._ranged(path, size)
        except StoreError as error:
            if error.trouble is not Trouble.LASTING:
                return error
        except (OSError, ValueError, pa.ArrowException):
            pass
        try:
            return self._opened(path)
        except (OSError, ValueError, pa.ArrowException, StoreError) as error:
            return error

    def _ranged(self, path: str, size: int) -> Footer:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = Connection(self._url, self._options, self._patience, self._known)
        return self._of(_Ranges(self._of_thread.connection, path, size), path)

    def _opened(self, path: str) -> Footer:
        connection = Connection(self._url, self._options, self._patience, self._known, is_fresh=True)
        with PatientFile(connection, path) as file:
            try:
                return self._of(file, path)
            except Exception:
                if file.failure is not None:
                    raise file.failure from None
                raise

    def _of(self, file: Positioned, path: str) -> Footer:
        footer = self._format.describe(file, path, self._columns, self._guess)
        self._largest = max(self._largest, footer.num_bytes)  # files are alike: the next footer is hardly longer
        self._guess = min(max(self._largest + self._largest // 8, 1), LARGEST_GUESS)
        return replace(footer, schema=self._shared(footer.schema))

    def _shared(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema as it is when it was kept: Arrow's serialization drops the names inside of maps."""
        content = pa.schema([field.remove_metadata() for field in schema]).serialize()
        key = content.to_pybytes()
        known = self._schemas.get(key)
        return known or self._schemas.setdefault(key, pa.ipc.read_schema(content))  # one, whichever thread is first


class _Ranges(Positioned):
    """A file of which each read is a request, without a handle."""

    def __init__(self, connection: Connection, path: str, size: int) -> None:
        self._connection, self._path, self.size = connection, path, size

    def read(self, size: int | None = -1) -> bytes:
        """Raises: StoreError; pa.ArrowInvalid where fewer bytes come."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        start = self._position

        def once(filesystem: Any) -> bytes:
            content: bytes = filesystem.cat_file(self._path, start=start, end=start + wanted)
            return content

        content = self._connection.call(f"Reading {self._path}", "read", once, wanted) if wanted else b""
        if len(content) != wanted:  # cut on its way, or the file is not any more as it was listed
            raise pa.ArrowInvalid(f"{len(content)} of {wanted} bytes came")
        self._position += wanted
        return content
