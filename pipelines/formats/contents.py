"""The content of a file as it is when decompressed, by ranges of its bytes. It knows no rows."""

import posixpath

import pyarrow as pa

from batchloom.pipelines.stores.patient_file import Positioned

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
FETCHED_BYTES = 1 << 21  # of a compressed file, in one request


def compression_of(path: str) -> str | None:
    """Return the compression that the name of a file tells."""
    return COMPRESSIONS.get(posixpath.splitext(plain_name(path))[1])


def plain_name(path: str) -> str:
    """Return the file's name in small letters, of a URL without what follows the path."""
    path = path.partition("?")[0] if path.startswith(("http://", "https://")) else path
    return posixpath.basename(path).lower()


class Contents:
    """Ranges of bytes. A compressed file is read from its beginning, once where the ranges ascend."""

    def __init__(self, file: Positioned, path: str) -> None:
        self._file, self._compression = file, compression_of(path)
        self._stream: pa.NativeFile | None = None
        self._position = 0  # in the stream

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return so many bytes, fewer only at the end. Raises: as `file.read`; OSError where it does not decompress."""
        if self._compression is None:
            self._file.seek(start)
            content: bytes = self._file.read(num_bytes)
            return content
        if self._stream is None or start < self._position:
            buffered = pa.BufferedInputStream(pa.PythonFile(_View(self._file), mode="r"), FETCHED_BYTES)
            self._stream, self._position = pa.CompressedInputStream(buffered, self._compression), 0
        while self._position < start and self._take(min(FETCHED_BYTES, start - self._position)):
            pass
        pieces = []
        while num_bytes and (piece := self._take(num_bytes)):
            pieces.append(piece)
            num_bytes -= len(piece)
        return b"".join(pieces)

    def _take(self, num_bytes: int) -> bytes:
        assert self._stream is not None
        piece: bytes = self._stream.read(num_bytes)
        self._position += len(piece)
        return piece


class _View(Positioned):
    """A file from its beginning on, whose end does not close it: pyarrow closes what it has read."""

    def __init__(self, file: Positioned) -> None:
        self._file, self.size = file, file.size

    def read(self, size: int | None = -1) -> bytes:
        self._file.seek(self._position)
        content: bytes = self._file.read(-1 if size is None else size)
        self._position += len(content)
        return content
