"""The version of a table that is pinned is the one that a job began with: whoever resumes it reads the same rows."""

import logging

from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.ledger.ledger import JOB
from batchloom.pipelines.records import parsed
from batchloom.pipelines.stores.storage import Store

log = logging.getLogger(__name__)


def pinned_version(config: JobConfig, patience: Patience) -> int | None:
    """Return the version that the last job in the output folder reads, where it reads the same table and goes on.

    Where its record is damaged, the newest version is read, and parts with rows of another are refused as they are of
    any input that has changed. Raises: StoreError.
    """
    if config.output.mode == "overwrite":
        return None
    store = Store(config.output.path, config.output.storage_options, patience)
    try:
        before = parsed(store.read(JOB))["job"]["input"]
        same = before["paths"] == [redacted(path) for path in config.input.paths]
        return int(before["version"]) if same and before["version"] is not None else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s does not say which version of the table the job reads (%r)", store.path(JOB), error)
        return None
