"""Whether a folder may be written, found out before anything is computed."""

import os
import uuid

from batchloom.pipelines.errors import OutputError, StoreError
from batchloom.pipelines.stores.storage import Store

MARKER = "_batchloom/written-by-plan"


def check_writable(store: Store) -> None:
    """Return where files can be written to the folder; it need not exist.

    No call of an object store tells that without writing. So a file of a few bytes is put there and removed; it stays
    where credentials permit no removal, and is in nobody's way. On a local disk nothing is written.

    Raises: OutputError.
    """
    if store.is_local:
        _check_local(store.path())
        return
    name = f"{MARKER}-{uuid.uuid4().hex}"
    try:
        store.put(name, b"batchloom plan: may this folder be written? This file can be removed.\n")
    except StoreError as error:
        raise OutputError(f"Output {store.url} cannot be written: {error} Or name another output.path.") from error
    store.discard([name])


def _check_local(path: str) -> None:
    there = path
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise OutputError(f"Output {path} cannot be written: {there} is no folder. Name another output.path.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"Output {path} cannot be written: this user may not write to {there}. Change its permissions, or name "
            "another output.path."
        )
