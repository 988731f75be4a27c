"""Beginnings that prompts have in common: which there are, and which a prompt has. They know no model.

Prompts made from one template, or with the same few examples, begin alike. The common part is read once and held as one
memory, which the steps then read once for all sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from batchloom.models.generation.memory.cpu.entry_pool import PromptMemory

MIN_SHARED = 32  # tokens: below, a memory of its own costs more than it saves
MAX_HELD = 4  # prefixes kept for prompts that are still to come


@dataclass(frozen=True)
class Prefix:
    """Token ids that prompts begin with, and their keys and values."""

    token_ids: tuple[int, ...]
    memory: PromptMemory


class Prefixes:
    """The prefixes that are held, by their first MIN_SHARED tokens; the one that came first leaves first.

    `reading` is a lock for whoever finds some missing, until they are held: what several lanes miss is read once.
    """

    def __init__(self) -> None:
        self.reading = Lock()
        self._held: dict[tuple[int, ...], Prefix] = {}

    def find(self, prompt_ids: Sequence[int]) -> Prefix | None:
        """The prefix that all but the last of a prompt's tokens begin with."""
        prefix = self._held.get(_key(prompt_ids))
        if prefix is None or tuple(prompt_ids[: len(prefix.token_ids)]) != prefix.token_ids:
            return None
        return prefix if len(prefix.token_ids) < len(prompt_ids) else None

    def missing(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Beginnings that several of these prompts share and that are not held."""
        alike: dict[tuple[int, ...], list[Sequence[int]]] = {}
        for prompt_ids in prompts:
            if len(prompt_ids) > MIN_SHARED and self.find(prompt_ids) is None:
                alike.setdefault(_key(prompt_ids), []).append(prompt_ids)
        return [_common(group) for group in alike.values() if len(group) > 1]

    def hold(self, prefix: Prefix) -> None:
        self._held[_key(prefix.token_ids)] = prefix
        while len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]

    def clear(self) -> None:
        self._held.clear()


def _key(prompt_ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(prompt_ids[:MIN_SHARED])


def _common(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all prompts begin with, the last token of each left out: it is read by a step of its own."""
    ordered = sorted(list(prompt_ids) for prompt_ids in prompts)
    first, last = ordered[0], ordered[-1]  # what these two share, all share
    most = min(map(len, ordered)) - 1
    length = next((place for place in range(most) if first[place] != last[place]), most)
    return tuple(first[:length])
