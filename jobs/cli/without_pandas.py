"""Keep out of short commands what they make no use of: pandas, and the threads of numpy's algebra."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from batchloom.jobs.variables import variable


def keep_pandas_out() -> None:
    """Let pyarrow look for pandas now, and find none.

    pyarrow looks once in a process, at its first array of Python values, to know pandas' own types: an import of 0.3 s.
    Not for commands that start Ray, whose data library needs both; nothing is done where pyarrow is loaded already.
    """
    if "pyarrow" in sys.modules or "pandas" in sys.modules:
        return
    keep_threads_out()
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow

        pyarrow.array([None])
    finally:
        sys.meta_path.remove(finder)


def keep_threads_out() -> None:
    """Load numpy now, whose algebra starts a thread for each core; they spin for 0.1 s of a processor on two cores."""
    with variable("OPENBLAS_NUM_THREADS", "1"):
        import numpy  # noqa: F401


class _NoPandas:
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not for this command", name=fullname)
        return None
