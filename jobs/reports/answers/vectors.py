"""What embeddings add up to: their norms, how alike they are, and which are not as they should be."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import Answers
from batchloom.jobs.reports.blocks import Block, Cell, Facts
from batchloom.jobs.reports.numbers import Numbers, histogram, joined

KEPT_VECTORS = 1024  # whose pairs are compared: a random choice, the same each time
SAME = 1 - 1e-6


class Vectors(Answers):
    """Norms of all vectors, and the cosine similarities of pairs of some."""

    def __init__(self, column: str) -> None:
        self._column = column
        self.schema = pa.schema([(column, pa.list_(pa.float32()))])
        self._norms = list[Numbers]()
        self._kept: Numbers | None = None
        self._keys = np.zeros(0)
        self._dimensions = set[int]()
        self._random = np.random.default_rng(0)

    def add(self, rows: pa.Table) -> None:
        column = rows[self._column].drop_null()
        lengths = pc.list_value_length(column).to_numpy()
        self._dimensions.update(np.unique(lengths).tolist())
        if not len(lengths) or len(self._dimensions) != 1:
            return
        flat = pc.list_flatten(column).combine_chunks()
        vectors = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(lengths), -1)
        self._norms.append(np.linalg.norm(vectors, axis=1))
        self._keep(vectors)

    def _keep(self, vectors: Numbers) -> None:
        """Keep the vectors with the smallest of random keys: each vector of an output is as likely as any other."""
        keys = np.concatenate([self._keys, self._random.random(len(vectors))])
        both = vectors if self._kept is None else np.concatenate([self._kept, vectors])
        chosen = np.argsort(keys)[:KEPT_VECTORS]
        self._keys, self._kept = keys[chosen], both[chosen]

    def blocks(self) -> Iterator[Block]:
        if len(self._dimensions) > 1:
            yield Facts({"dimensions": ", ".join(map(str, sorted(self._dimensions)))}, "Vectors of several lengths")
        norms = joined(self._norms)
        if not len(norms):
            return
        yield Facts(self._facts(norms), "Vectors")
        if found := histogram("Norms", "Euclidean norm", norms, "vectors"):
            yield found
        pairs = self._cosines()
        if found := histogram("How alike two rows are", "cosine similarity", pairs, "pairs", (-1.0, 1.0)):
            yield found

    def words(self) -> dict[str, str]:
        norms = joined(self._norms)
        if not len(norms):
            return {}
        return {"Vectors": f"{max(self._dimensions):,} dimensions, median norm {np.median(norms):.4g}"}

    def _facts(self, norms: Numbers) -> dict[str, Cell]:
        pairs = self._cosines()
        alike: dict[str, Cell] = {}
        if len(pairs):
            alike = {
                "median cosine of pairs": float(np.median(pairs)),
                "pairs that are equal": int((pairs > SAME).sum()),
            }
            alike["pairs compared"] = len(pairs)
        return {
            "dimensions": max(self._dimensions),
            "smallest norm": float(norms.min()),
            "median norm": float(np.median(norms)),
            "largest norm": float(norms.max()),
            "zero vectors": int((norms == 0).sum()),
            **alike,
        }

    def _cosines(self) -> Numbers:
        """Return the cosine similarity of each pair of kept vectors that are not zero."""
        if self._kept is None:
            return np.zeros(0)
        norms = np.linalg.norm(self._kept, axis=1, keepdims=True)
        unit = (self._kept / np.where(norms == 0, 1, norms))[norms[:, 0] > 0]
        similar: Numbers = np.clip(unit @ unit.T, -1, 1)[np.triu_indices(len(unit), 1)]
        return similar
