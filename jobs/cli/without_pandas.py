"""Keep pandas out of commands that make no use of it."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def keep_pandas_out() -> None:
    """Let pyarrow look for pandas now, and find none.

    pyarrow looks once in a process, at its first array of Python values, to know pandas' own types: an import of 0.3 s.
    Not for commands that start Ray, whose data library needs both; nothing is done where pyarrow is loaded already.
    """
    if "pyarrow" in sys.modules or "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow

        pyarrow.array([None])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not for this command", name=fullname)
        return None
