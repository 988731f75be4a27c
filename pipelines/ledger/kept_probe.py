"""One rank's answers to the probe, kept in the output folder: a resumed job and another replica compare with them."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from batchloom.pipelines.records import from_json, parsed
from batchloom.pipelines.replicas.probe import Answers
from batchloom.pipelines.stores.storage import Store

log = logging.getLogger(__name__)

PROBE = "_batchloom/probe.json"
PROBE_BELONGS_TO = ("batchloom", "fingerprint")  # stored answers are valid only where these are equal


def read_probe(store: Store, job: Mapping[str, Any]) -> Answers | None:
    """Return one rank's stored answers to the probe; None where another version or another job computed them."""
    if PROBE not in store.names():
        return None
    try:
        kept = parsed(store.read(PROBE))
        answers = from_json(Answers, kept["answers"])
        return answers if all(kept[name] == job[name] for name in PROBE_BELONGS_TO) else None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not as batchloom wrote it (%r); it is computed again", store.path(PROBE), error)
        return None


def keep_probe(store: Store, job: Mapping[str, Any], answers: Answers) -> None:
    """Store one rank's answers to the probe."""
    kept = {**{name: job[name] for name in PROBE_BELONGS_TO}, "answers": asdict(answers)}
    store.put(PROBE, json.dumps(kept).encode())
