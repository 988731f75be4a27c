"""The messages between the leader and its followers, as types. It knows no process and no tensor."""

from dataclasses import dataclass
from enum import Enum, auto


class Call(Enum):
    """A call that all ranks execute together: the leader in its own process, each follower by `Follower.METHODS`.

    A message to a follower is a pair of one of these and a tuple of picklable arguments.
    """

    FORWARD = auto()
    SINGLE_PASS = auto()
    MAX_CACHED_TOKENS = auto()
    MAKE_RUNNER = auto()
    PREFILL = auto()
    DECODE = auto()
    CLEAR = auto()
    FORGET_RUNNER = auto()
    REJOIN = auto()


REJOIN_MESSAGE: tuple[Call, tuple[()]] = (Call.REJOIN, ())
"""Tells a follower to abandon the call under way and to join a new group."""


class Progress(Enum):
    """How far a follower has come with its start; it reports each once."""

    STARTED = auto()  # about to join the group
    LOADED = auto()  # its slices of the weights are read


@dataclass(frozen=True)
class OutOfMemoryReport:
    """A follower's report that it abandoned a call for lack of memory; it then waits for REJOIN."""

    message: str
