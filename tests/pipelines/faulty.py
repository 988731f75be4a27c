"""A filesystem in memory whose calls fail as a test says. It is no local disk to the code: calls have patience."""

import io
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

Fault = Exception | Callable[[], None] | Callable[[bytes], bytes]


class FaultyFileSystem(AbstractFileSystem):
    """`faults[kind]` are used up one a call: an exception is raised, a function is called, with what was read for
    "read". Kinds: info, list, read, write, remove. `always[kind]` is raised by each call."""

    protocol = "faulty"
    faults: ClassVar[defaultdict[str, list[Fault]]] = defaultdict(list)
    always: ClassVar[dict[str, Exception]] = {}
    num_calls: ClassVar[defaultdict[str, int]] = defaultdict(int)
    num_made = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        type(self).num_made += 1
        self.memory = MemoryFileSystem()

    @classmethod
    def reset(cls) -> None:
        cls.faults.clear()
        cls.always.clear()
        cls.num_calls.clear()
        cls.num_made = 0
        MemoryFileSystem.store.clear()
        cls.clear_instance_cache()

    def _fail(self, kind: str, content: bytes = b"") -> bytes:
        self.num_calls[kind] += 1
        if kind in self.always:
            raise self.always[kind]
        if not self.faults[kind]:
            return content
        fault = self.faults[kind].pop(0)
        if isinstance(fault, Exception):
            raise fault
        return fault(content) if kind == "read" else fault() or content  # type: ignore[call-arg, arg-type, return-value]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("faulty://").strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._fail("info")
        return self.memory.info(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        self._fail("list")
        return self.memory.ls(path, detail=detail)

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        return FaultyFile(self, path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._fail("read", self.memory.cat_file(path, start, end))

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        self._fail("write")
        self.memory.pipe_file(path, value)

    def exists(self, path: str, **_: Any) -> bool:
        return bool(self.memory.exists(path))

    def rm_file(self, path: str) -> None:
        self._fail("remove")
        self.memory.rm_file(path)


class FaultyFile(io.BytesIO):
    def __init__(self, filesystem: FaultyFileSystem, path: str) -> None:
        super().__init__(filesystem.memory.cat_file(path))
        self._filesystem = filesystem

    def read(self, size: int | None = -1) -> bytes:
        return self._filesystem._fail("read", super().read(size))


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def hang() -> None:
    time.sleep(60)


def garbled(content: bytes) -> bytes:
    return bytes(byte ^ 0x55 for byte in content)


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]
