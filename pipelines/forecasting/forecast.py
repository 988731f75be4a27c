"""A forecast: what a job's rows will be like, from a sample of them, tokenized in this process. No model is loaded."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom import models
from batchloom.pipelines.fields import ANSWER_PREFIX
from batchloom.pipelines.forecasting.expected import Expected, Values
from batchloom.pipelines.forecasting.sample import Sample
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.running.stages import tokenize_of
from batchloom.pipelines.stages.tokenize import ANSWER_OF
from batchloom.pipelines.stages.work import Work


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to be expected of all rows. Errors that only a model finds are not among it."""

    num_rows: int
    """Of the whole job."""
    num_looked_at: int
    """Rows of the sample; chosen ones alone where all of the input was read."""
    chosen: Expected
    """Rows that are answered."""
    input_tokens: Expected
    """As a manifest counts them."""
    asked_tokens: Expected
    """That the model is asked: of rows of the sample that say the same once, and of windows that overlap each. Rows of
    one unit say the same more often than rows from all over the input."""
    truncated_tokens: Expected
    errors: Mapping[str, Expected]
    """Rows by the kind of their error."""
    cpu_seconds_a_row: float
    """For tokenizing a chosen row, on one core."""

    @staticmethod
    def of(job: JobPlan, sample: Sample) -> "Forecast":
        """Tokenize the sample. Raises: ModelError where the tokenizer cannot be used."""
        tokenizer = models.load_tokenizer(job.checkpoint.pinned)
        work = sample.work(range(sample.rows.num_rows))
        began = time.process_time()
        work = tokenize_of(job, job.config.engine.device).prepare(work, tokenizer)
        seconds = time.process_time() - began
        kinds = pc.struct_field(work.rows["error"], "kind").to_pylist()
        by_kind = [kind for kind, _ in Counter(filter(None, kinds)).most_common()]
        return Forecast(
            num_rows=job.num_rows,
            num_looked_at=sample.num_looked_at,
            chosen=sample.chosen,
            input_tokens=sample.expected(_values(work.rows["num_input_tokens"])),
            asked_tokens=sample.expected(_asked(work)),
            truncated_tokens=sample.expected(_values(work.rows["num_truncated_tokens"])),
            errors={kind: sample.expected(np.array([one == kind for one in kinds], float)) for kind in by_kind},
            cpu_seconds_a_row=seconds / max(work.rows.num_rows, 1),
        )


def _asked(work: Work) -> Values:
    """[rows]: tokens of each row's requests; of rows that share an answer, the first has them."""
    assert work.requests is not None
    rows = work.rows.num_rows
    answer_of = work.rows[ANSWER_OF].to_numpy()
    lengths = pc.list_value_length(work.requests["token_ids"]).to_numpy()
    if ANSWER_PREFIX.name in work.requests.column_names:
        prefixes = pc.list_value_length(work.requests[ANSWER_PREFIX.name])
        lengths = lengths + pc.fill_null(prefixes, 0).to_numpy()
    of_answers = np.bincount(work.requests["row"].to_numpy(), weights=lengths, minlength=rows)
    asked = np.zeros(rows)
    answers, first = np.unique(answer_of, return_index=True)
    asked[first] = of_answers[answers]
    return asked


def _values(column: pa.ChunkedArray) -> Values:
    values: Values = column.to_numpy().astype(np.float64)
    return values
