"""The meaning of an expression: its tree, with columns of known types, as an expression of Arrow. It reads no row.

Three values, as in SQL: what compares null is null, and only what is true is chosen.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.selection.grammar import moment_of
from batchloom.pipelines.selection.kinds import Kind, common_type, in_type, type_of
from batchloom.pipelines.selection.tree import LOGICAL, Call, Literal, Name, Node, Value, names_in
from batchloom.pipelines.selection.words import WhereError, short

COMPARED: "Mapping[str, Callable[[pc.Expression, pc.Expression], pc.Expression]]" = {
    "=": lambda one, other: one == other,
    "<>": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}

SHOWN_NAMES, SHOWN_OPERANDS = 50, 4  # in messages, at most


def check_names(text: str, tree: Node, there: Sequence[str]) -> None:
    """Raise WhereError where a column is not among those that are `there`."""
    names = list(names_in(tree))
    if not names:
        raise WhereError(text, 0, "it names no column, so that it would choose all rows or none.")
    for name in names:
        if name.name not in there:
            small = {one.lower(): one for one in there}
            near = difflib.get_close_matches(name.name.lower(), small, 1)
            meant = f" Did you mean {small[near[0]]}?" if near else ""
            more = f" and {len(there) - SHOWN_NAMES} more" if len(there) > SHOWN_NAMES else ""
            known = ", ".join(there[:SHOWN_NAMES]) + more
            raise WhereError(text, name.at, f"there is no column {short(name.name)!r}.{meant} There are: {known}.")


def expression_of(text: str, tree: Node, schema: pa.Schema) -> "pc.Expression":
    """Return the expression, of columns by their places in `schema`. Raises: WhereError where types do not fit."""
    meant = _Meaning(text, schema)
    found = meant.of(tree)
    meant.need(found, Kind.TRUTH, "the whole", "a condition")
    try:
        mask_of(schema.empty_table(), found.expression)
    except (pa.ArrowException, TypeError) as error:
        raise WhereError(text, 0, f"Arrow cannot compute it: {error}.") from error
    return found.expression


def mask_of(rows: pa.Table, expression: "pc.Expression") -> pa.ChunkedArray:
    """Return where the expression is true: true, false or null for each row."""
    from pyarrow import acero  # brings pandas with it, where that is installed: 0.3 s that every plan would pay for

    nodes = [
        acero.Declaration("table_source", acero.TableSourceNodeOptions(rows)),
        acero.Declaration("project", acero.ProjectNodeOptions([expression], ["is_chosen"])),
    ]
    return acero.Declaration.from_sequence(nodes).to_table(use_threads=False)["is_chosen"]


@dataclass(frozen=True)
class _Operand:
    at: int
    type: pa.DataType
    words: str
    """As messages name it."""
    expression: "pc.Expression"
    literal: Literal | None = None

    @property
    def kind(self) -> Kind:
        return Kind.of(self.type)

    @staticmethod
    def of_literal(literal: Literal, words: str) -> "_Operand":
        """Raises: OverflowError."""
        found = type_of(literal.value)
        return _Operand(literal.at, found, words, pc.scalar(in_type(literal.value, found)), literal)


@dataclass(frozen=True)
class _Meaning:
    text: str
    schema: pa.Schema

    def of(self, node: Node) -> _Operand:
        match node:
            case Name(at, name):
                column, field = pc.field(self.schema.get_field_index(name)), self.schema.field(name)
                return _Operand(at, field.type, f"column {name}, {_a(Kind.of(field.type))} ({field.type})", column)
            case Literal(at, value):
                try:
                    return _Operand.of_literal(node, f"the {_noun(value)} {short(str(value))}")
                except OverflowError as error:
                    raise self._wrong(at, f"{error}.") from error
        expression, found = self._called(node, [self.of(one) for one in node.arguments])
        words = "a condition" if found == pa.bool_() else f"{node.function}(), {_a(Kind.of(found))}"
        return _Operand(node.at, found, words, expression)

    def need(self, operand: _Operand, kind: Kind, whose: str, wanted: str = "") -> None:
        """Raise WhereError where an operand is of another kind."""
        if operand.kind not in (kind, Kind.NOTHING):
            raise self._wrong(operand.at, f"{whose} takes {wanted or kind.value}; found {operand.words}.")

    def _called(self, node: Call, operands: Sequence[_Operand]) -> "tuple[pc.Expression, pa.DataType]":
        first, function = operands[0], node.function
        if function in LOGICAL:
            for operand in operands:
                self.need(operand, Kind.TRUTH, function, "conditions")
            every = [_cast(operand, pa.bool_()) for operand in operands]
            return ~every[0] if function == "not" else _joined(function, every), pa.bool_()
        match function:
            case "is null":
                return first.expression.is_null(), pa.bool_()
            case "length" if first.kind is Kind.LIST:
                return pc.list_value_length(first.expression), pa.int64()
            case "length":
                self.need(first, Kind.TEXT, "length()", "text or a list")
                return pc.utf8_length(_cast(first, pa.large_string())), pa.int64()
            case "lower":
                self.need(first, Kind.TEXT, "lower()")
                return pc.utf8_lower(_cast(first, pa.large_string())), pa.large_string()
            case "like":
                self.need(first, Kind.TEXT, "like")
                pattern = operands[1].literal
                if pattern is None or not isinstance(pattern.value, str):
                    raise self._wrong(operands[1].at, "like compares with a text in quotes.")
                return pc.match_like(_cast(first, pa.large_string()), pattern.value), pa.bool_()
            case "in":
                return self._is_in(node, operands), pa.bool_()
        one, other = self._alike(node, operands)
        return COMPARED[function](_cast(one, one.type), _cast(other, other.type)), pa.bool_()

    def _is_in(self, node: Call, operands: Sequence[_Operand]) -> "pc.Expression":
        for item in operands[1:]:
            if item.literal is None:
                raise self._wrong(item.at, f"a list holds texts, numbers, dates, true and false; found {item.words}.")
        value, *items = self._alike(node, operands)
        values = [in_type(item.literal.value, item.type).as_py() for item in items if item.literal is not None]
        if pa.types.is_floating(value.type) and 0.0 in values:
            values += [0.0, -0.0]  # is_in tells them apart, and = does not
        column = _cast(value, value.type)
        found = pc.is_in(column, value_set=pa.array(values, value.type))
        return pc.if_else(column.is_valid(), found, pc.scalar(pa.scalar(None, pa.bool_())))

    def _alike(self, node: Call, operands: Sequence[_Operand]) -> list[_Operand]:
        """Return the operands with the type in which all of them are compared. Raises: WhereError for none."""
        kinds = {one.kind for one in operands if one.literal is None} & {Kind.DATE, Kind.TIME}
        if len(kinds) == 1:
            operands = [self._as_moment(one, Kind.TIME in kinds) for one in operands]
        valued = [one for one in operands if one.kind is not Kind.NOTHING]
        words = list(dict.fromkeys(one.words for one in operands))
        more = [f"{len(words) - SHOWN_OPERANDS} more"] if len(words) > SHOWN_OPERANDS else []
        compared = " and ".join([*words[:SHOWN_OPERANDS], *more])
        if len({one.kind for one in valued}) > 1 or any(one.kind in (Kind.LIST, Kind.OTHER) for one in valued):
            raise self._wrong(node.at, f"{compared} cannot be compared.{_cure(valued)}")
        try:
            shared = common_type(
                [one.type for one in valued if one.literal is None], [one.type for one in valued if one.literal]
            )
            alike = [replace(one, type=shared) for one in operands]
            for one in alike:
                _cast(one, shared)
        except (TypeError, OverflowError, ValueError, pa.ArrowException) as error:
            raise self._wrong(node.at, f"{compared} cannot be compared: {error}.") from error
        return alike

    def _as_moment(self, operand: _Operand, is_time: bool) -> _Operand:
        """Return a literal beside dates, or times, as one: a text as what it says, a date as its first moment."""
        literal = operand.literal
        value = None if literal is None else literal.value
        if isinstance(value, str):
            value = moment_of(self.text, operand.at, value, is_date=not is_time)
        if is_time and isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if literal is None or not isinstance(value, date):
            return operand
        return _Operand.of_literal(Literal(operand.at, value), operand.words)

    def _wrong(self, at: int, problem: str) -> WhereError:
        return WhereError(self.text, at, problem)


def _cast(operand: _Operand, wanted: pa.DataType) -> "pc.Expression":
    """Raises: OverflowError, pa.ArrowException where a literal does not fit."""
    if operand.literal is not None:
        return pc.scalar(in_type(operand.literal.value, wanted))
    # Of whole numbers beside fractions, and of these beside shorter ones, as much as there is room for.
    return operand.expression.cast(wanted, safe=False)


def _joined(function: str, conditions: "Sequence[pc.Expression]") -> "pc.Expression":
    """Return all of the conditions, or any: as a tree of little depth."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    left, right = _joined(function, conditions[:middle]), _joined(function, conditions[middle:])
    return left & right if function == "and" else left | right


def _noun(value: Value) -> str:
    kind = Kind.of(type_of(value))
    return {Kind.TEXT: "text", Kind.NUMBER: "number", Kind.TRUTH: "value"}.get(kind, "date")


def _a(kind: Kind) -> str:
    return kind.value


def _cure(operands: Sequence[_Operand]) -> str:
    """Return what may have been meant."""
    kinds = {one.kind for one in operands}
    if kinds == {Kind.TEXT, Kind.NUMBER}:
        number = next(one for one in operands if one.kind is Kind.NUMBER)
        if number.literal is not None:
            return f" Texts stand in quotes: '{number.literal.value}'. Hive's partitions are texts."
    if Kind.NUMBER in kinds and Kind.TEXT in kinds:
        return " Numbers stand without quotes."
    return ""
