"""What an expression says of a whole file, by the values that the file's place gives to its columns."""

from collections.abc import Mapping

import pyarrow as pa

from batchloom.pipelines.selection.meaning import expression_of, mask_of
from batchloom.pipelines.selection.tree import LOGICAL, Call, Literal, Node, names_in


def is_excluded(text: str, tree: Node, values: Mapping[str, str | None]) -> bool:
    """Return whether an expression is false for all rows of a file in which these columns have these values,
    whatever is in the others."""
    names = {name.name for name in names_in(tree)} & set(values)
    if not names:
        return False
    schema = pa.schema([(name, pa.string()) for name in sorted(names)])
    row = pa.table([pa.array([values[name]], pa.string()) for name in schema.names], schema)
    (is_true,) = mask_of(row, expression_of(text, _known(tree, values), schema)).to_pylist()
    return is_true is False


def _known(node: Node, values: Mapping[str, str | None]) -> Node:
    """Return an expression of the known columns alone: what asks for others is neither true nor false."""
    if isinstance(node, Call) and node.function in LOGICAL:
        return Call(node.at, node.function, tuple(_known(one, values) for one in node.arguments))
    is_known = all(name.name in values for name in names_in(node))
    return node if is_known else Literal(node.at, None)
