"""Arrow's functions, loaded when the first is called: modules that a plan imports use them from here.

`import pyarrow.compute` writes the documentation of 300 functions, 30 ms, and a plan on paper calls none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["pc"]


class _Functions:
    """Stands for the module `pyarrow.compute`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("pyarrow.compute"), name)


if TYPE_CHECKING:
    import pyarrow.compute as pc
else:
    pc = _Functions()
