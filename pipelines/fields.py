"""The ledger: the columns that every output has beside the kept ones and the task's. Counts of tokens, and errors.

And one column of requests and results, which tasks and replicas share.
"""

import pyarrow as pa

ERROR_TYPE = pa.struct([("stage", pa.string()), ("kind", pa.string()), ("message", pa.string())])
ERROR_FIELD = pa.field("error", ERROR_TYPE)
LEDGER_FIELDS = [
    pa.field("num_input_tokens", pa.int32()),
    pa.field("num_output_tokens", pa.int32()),
    pa.field("num_truncated_tokens", pa.int32()),
    pa.field("finish_reason", pa.string()),
    ERROR_FIELD,
]
# The tokens that an answer begins with and that are not generated; null, or no such column, where there are none.
ANSWER_PREFIX = pa.field("answer_prefix", pa.list_(pa.int32()))
LEDGER_INPUT = ("num_input_tokens", "num_truncated_tokens")
