"""The grammar of `input.where`: the conditions of SQL, without its statements. It knows no columns and no types.

any of     all of ("or" all of)*
all of     test ("and" test)*
test       "not" test | value [comparison value | ["not"] ("in" (..) | "like" text | "between" value "and" value)
                               | "is" ["not"] "null"]
value      column | 'text' | number | true | false | date '..' | timestamp '..' | length(value) | lower(value)
           | (any of)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal, InvalidOperation

from batchloom.pipelines.selection.tree import Call, Literal, Name, Node
from batchloom.pipelines.selection.words import WhereError, Word, WordKind, short, words

COMPARISONS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
FUNCTIONS = ("length", "lower")
RESERVED = ("and", "or", "not", "in", "is", "like", "between", "null", "true", "false")
MAX_DEPTH = 100
MAX_CONDITIONS = 1000  # Arrow's recursion over all of them took 8 MB of stack, and the process, at 10,000


def parse(text: str) -> Node:
    """Return the tree of an expression. Raises: WhereError where the text is none."""
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._words = list(words(text))
        self._next = 0
        self._depth = 0
        self._num_conditions = 0

    def whole(self) -> Node:
        node = self._any_of()
        if self._word.kind is not WordKind.END:
            raise self._unexpected("and, or, or the end")
        return node

    def _any_of(self) -> Node:
        return self._series("or", self._all_of)

    def _all_of(self) -> Node:
        return self._series("and", self._test)

    def _series(self, operator: str, one: Callable[[], Node]) -> Node:
        first, at = one(), self._word.at
        parts = [first]
        while self._takes(operator):
            parts.append(one())
        return Call(at, operator, tuple(parts)) if len(parts) > 1 else first

    def _test(self) -> Node:
        at = self._word.at
        if self._takes("not"):
            with self._deeper(at):
                return Call(at, "not", (self._test(),))
        return self._tested(self._value())

    def _tested(self, value: Node) -> Node:
        at, word = self._word.at, self._word
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            problem = f"it has more than {MAX_CONDITIONS:,} conditions. Many values of a column are a list: in (1, 2)."
            raise WhereError(self._text, value.at, problem)
        if word.kind is WordKind.MARK and word.text in COMPARISONS:
            self._next += 1
            return Call(at, COMPARISONS[word.text], (value, self._value()))
        if self._takes("is"):
            is_not = self._takes("not")
            self._needs("null")
            return _negated(is_not, Call(at, "is null", (value,)))
        is_not = self._takes("not")
        if self._takes("in"):
            return _negated(is_not, Call(at, "in", (value, *self._list())))
        if self._takes("like"):
            return _negated(is_not, Call(at, "like", (value, self._value())))
        if self._takes("between"):
            low = self._value()
            self._needs("and")
            between = Call(at, "and", (Call(at, ">=", (value, low)), Call(at, "<=", (value, self._value()))))
            return _negated(is_not, between)
        if is_not:
            raise self._unexpected("in, like or between")
        return value

    def _list(self) -> list[Node]:
        self._needs("(")
        items = [self._value()]
        while self._takes(","):
            items.append(self._value())
        self._needs(")")
        return items

    def _value(self) -> Node:
        word = self._word
        self._next += 1
        match word.kind:
            case WordKind.TEXT:
                return Literal(word.at, word.text)
            case WordKind.NUMBER:
                return self._number(word.at, word.text)
            case WordKind.QUOTED:
                return self._name(word)
            case WordKind.NAME if word.text.lower() not in RESERVED:
                return self._named(word, word.text.lower())
            case WordKind.NAME if word.text.lower() in ("true", "false"):
                return Literal(word.at, word.text.lower() == "true")
            case WordKind.MARK if word.text in ("+", "-") and self._word.kind is WordKind.NUMBER:
                self._next += 1
                return self._number(word.at, word.text + self._words[self._next - 1].text)
            case WordKind.MARK if word.text == "(":
                with self._deeper(word.at):
                    node = self._any_of()
                self._needs(")")
                return node
        self._next -= 1
        raise self._unexpected("a column, a value, not, or (")

    def _number(self, at: int, text: str) -> Literal:
        try:
            return Literal(at, Decimal(text))
        except InvalidOperation:
            raise WhereError(self._text, at, f"{short(text)} is no number that can be compared.") from None

    def _named(self, word: Word, small: str) -> Node:
        if small in ("date", "timestamp") and self._word.kind is WordKind.TEXT:
            at, value = self._word.at, self._word.text
            self._next += 1
            return Literal(at, moment_of(self._text, at, value, small == "date"))
        if self._word.text == "(" and self._word.kind is WordKind.MARK:
            if small not in FUNCTIONS:
                known = ", ".join(f"{name}()" for name in FUNCTIONS)
                raise WhereError(self._text, word.at, f"there is no function {short(word.text)}(). There are: {known}.")
            self._next += 1
            with self._deeper(word.at):
                node = self._value()
            self._needs(")")
            return Call(word.at, small, (node,))
        return self._name(word)

    def _name(self, first: Word) -> Name:
        steps = [first.text]
        while self._takes("."):
            if self._word.kind not in (WordKind.NAME, WordKind.QUOTED):
                raise self._unexpected("a name")
            steps.append(self._word.text)
            self._next += 1
        return Name(first.at, ".".join(steps))

    @contextmanager
    def _deeper(self, at: int) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WhereError(self._text, at, f"it is nested more than {MAX_DEPTH} deep.")
        yield
        self._depth -= 1

    @property
    def _word(self) -> Word:
        return self._words[self._next]

    def _takes(self, text: str) -> bool:
        """Go on behind a reserved word or a mark, where it is the next."""
        kind = WordKind.NAME if text.isalpha() else WordKind.MARK
        if self._word.kind is kind and self._word.text.lower() == text:
            self._next += 1
            return True
        return False

    def _needs(self, text: str) -> None:
        if not self._takes(text):
            raise self._unexpected(text)

    def _unexpected(self, wanted: str) -> WhereError:
        return WhereError(self._text, self._word.at, f"expected {wanted}; found {self._word}.{self._hint()}")

    def _hint(self) -> str:
        before = self._words[self._next - 1] if self._next else None
        if self._word.text == "=" and before is not None and before.text == "=":
            return " Equality is written =."
        if self._word.text.lower() == "null" and self._word.kind is WordKind.NAME:
            return " What is missing is asked for by is null."
        if self._word.text.lower() in RESERVED and self._word.kind is WordKind.NAME:
            return f' A column of that name is written "{self._word.text}".'
        return ""


def moment_of(text: str, at: int, value: str, is_date: bool) -> date:
    """Return the date, or date and time, that a text says. Raises: WhereError where it is none."""
    try:
        return date.fromisoformat(value) if is_date else datetime.fromisoformat(value)
    except ValueError:
        example = "2024-12-31" if is_date else "2024-12-31 23:59:59"
        what = "date" if is_date else "date and time"
        raise WhereError(text, at, f"{short(value)!r} is no {what}, which is written as '{example}'.") from None


def _negated(is_negated: bool, node: Node) -> Node:
    return Call(node.at, "not", (node,)) if is_negated else node
