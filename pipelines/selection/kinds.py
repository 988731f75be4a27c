"""The kinds of values that an expression compares, and the types in which two of them are compared exactly."""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache

import pyarrow as pa

from batchloom.pipelines.columns.texts import is_bytes
from batchloom.pipelines.selection.words import short

LARGEST = 1 << 63
DIGITS = 38  # before and behind the point, where whole numbers meet fractions: as many as 256 bits hold of both


class Kind(Enum):
    """What a value is."""

    TEXT = "text"
    NUMBER = "a number"
    TRUTH = "true or false"
    DATE = "a date"
    TIME = "a date and time"
    LIST = "a list"
    NOTHING = "nothing but nulls"
    OTHER = "of a type that cannot be compared"

    @staticmethod
    @cache
    def of(found: pa.DataType) -> "Kind":
        """Return the kind of a column's values."""
        is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
        for kind, tests in (
            (Kind.TEXT, (pa.types.is_string, pa.types.is_large_string, is_bytes)),
            (Kind.NUMBER, is_number),
            (Kind.TRUTH, (pa.types.is_boolean,)),
            (Kind.DATE, (pa.types.is_date,)),
            (Kind.TIME, (pa.types.is_timestamp,)),
            (Kind.LIST, is_list),
            (Kind.NOTHING, (pa.types.is_null,)),
        ):
            if any(test(found) for test in tests):
                return kind
        return Kind.OTHER


def type_of(value: str | Decimal | bool | date | None) -> pa.DataType:
    """Return the type of a literal, by itself. Raises: OverflowError for a number of too many digits."""
    match value:
        case bool() | None:
            return pa.bool_()
        case str():
            return pa.string()
        case datetime():
            return pa.timestamp("us", None if value.tzinfo is None else "UTC")
        case date():
            return pa.date32()
    exponent = value.as_tuple().exponent
    scale = max(0, -exponent) if isinstance(exponent, int) else 0
    if scale > DIGITS or abs(value) >= 10**DIGITS:
        raise OverflowError(f"{short(str(value))} has more digits than can be compared exactly")
    return pa.int64() if value == int(value) and abs(value) < LARGEST else pa.decimal256(2 * DIGITS, scale)


def common_type(columns: Iterable[pa.DataType], literals: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type in which values of one kind are compared. Raises: TypeError where there is none.

    Whole numbers and decimals meet exactly; where one is of floating point, all are, and a literal as the column is.
    """
    own, given = list(columns), list(literals)
    every = [*own, *given]
    kind = Kind.of(every[0])
    if kind is Kind.TEXT:
        return pa.large_string() if any(map(pa.types.is_large_string, every)) else pa.string()
    if kind is Kind.NUMBER:
        return _common_number(own, given)
    if kind is Kind.TIME:
        zoned = {one.tz is not None for one in own}
        if len(zoned) > 1 or (zoned == {False} and any(one.tz is not None for one in given)):
            raise TypeError("one has a time zone and the other has none")
        units = [one.unit for one in own or given]
        finest = max(units, key=("s", "ms", "us", "ns").index)
        return pa.timestamp(finest if finest == "ns" else "us", "UTC" if True in zoned else None)
    return pa.date32() if kind is Kind.DATE else pa.bool_()


def _common_number(own: list[pa.DataType], given: list[pa.DataType]) -> pa.DataType:
    every = [*own, *given]
    floats = [one for one in own if pa.types.is_floating(one)]
    if floats:
        is_double = any(one == pa.float64() or not pa.types.is_floating(one) for one in own)
        return pa.float64() if is_double else pa.float32()
    if all(pa.types.is_integer(one) and one != pa.uint64() for one in every):
        return pa.int64()
    scale = max([0, *(one.scale for one in every if pa.types.is_decimal(one))])
    whole = max((one.precision - one.scale for one in own if pa.types.is_decimal(one)), default=0)
    if scale > DIGITS or whole > DIGITS:
        raise TypeError("they have more digits than can be compared exactly")
    return pa.decimal256(2 * DIGITS, scale)


def in_type(value: str | Decimal | bool | date | None, wanted: pa.DataType) -> pa.Scalar:
    """Return a literal in the type in which it is compared. Raises: OverflowError, pa.ArrowException where the type
    cannot hold it."""
    if isinstance(value, Decimal):
        if pa.types.is_integer(wanted):
            return pa.scalar(int(value), wanted)
        if pa.types.is_floating(wanted):
            return pa.scalar(float(value), wanted)
    if pa.types.is_timestamp(wanted) and isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        if wanted.tz is not None:
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return pa.scalar(moment, wanted)
    return pa.scalar(value, wanted)
