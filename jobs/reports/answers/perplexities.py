"""What perplexities add up to."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import Answers
from batchloom.jobs.reports.blocks import Block, Facts
from batchloom.jobs.reports.numbers import Numbers, histogram, joined, numbers


class Perplexities(Answers):
    """How likely texts are to the model."""

    schema = pa.schema(
        [("log_likelihood", pa.float64()), ("num_scored_tokens", pa.int32()), ("perplexity", pa.float64())]
    )

    def __init__(self) -> None:
        self._values = list[Numbers]()
        self._log_likelihood, self._num_tokens = 0.0, 0

    def add(self, rows: pa.Table) -> None:
        self._values.append(numbers(rows["perplexity"]))
        self._log_likelihood += pc.sum(rows["log_likelihood"]).as_py() or 0.0
        self._num_tokens += pc.sum(rows["num_scored_tokens"]).as_py() or 0

    def blocks(self) -> Iterator[Block]:
        values = joined(self._values)
        if not len(values):
            return
        far = np.quantile(values, 0.99)
        if found := histogram("Perplexity of texts, without the highest 1 %", "perplexity", values[values <= far]):
            yield found
        yield Facts(
            {
                "perplexity of all tokens": float(np.exp(min(-self._log_likelihood / max(self._num_tokens, 1), 700))),
                "median of texts": float(np.median(values)),
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "scored tokens": self._num_tokens,
            }
        )

    def words(self) -> dict[str, str]:
        values = joined(self._values)
        return {"Perplexity": f"median {np.median(values):,.4g}"} if len(values) else {}
