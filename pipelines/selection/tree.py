"""The tree of an expression: names, literals, and calls of operators and functions. It knows no types."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

Value = str | Decimal | bool | date | None
"""Of a literal; a datetime is a date. None: not known, which nobody writes."""


@dataclass(frozen=True)
class Name:
    """A column."""

    at: int
    """Which character of the text it begins at, from 0."""
    name: str


@dataclass(frozen=True)
class Literal:
    """A value."""

    at: int
    value: Value


@dataclass(frozen=True)
class Call:
    """An operator or a function: `and`, `=`, `in`, `is null`, `length`, ..."""

    at: int
    """Of the operator."""
    function: str
    arguments: tuple["Node", ...]


Node = Name | Literal | Call

LOGICAL = ("and", "or", "not")


def names_in(node: Node) -> Iterator[Name]:
    """Yield the columns of an expression, in the order of its text."""
    match node:
        case Name():
            yield node
        case Call():
            for argument in node.arguments:
                yield from names_in(argument)
