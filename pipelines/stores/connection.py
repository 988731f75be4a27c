"""A connection is a filesystem whose calls are tried again, each time on a fresh instance of it. It knows no folder."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from zipfile import BadZipFile

import fsspec

from batchloom.models.patience import GaveUpError, Patience, is_local
from batchloom.models.trouble import Trouble
from batchloom.pipelines.errors import ConfigError, PipelineError, StoreError

Given = TypeVar("Given")

_ADVICE = {
    Trouble.PASSING: "Run the same command again when the store is back, or raise limits.storage_patience.",
    Trouble.DOUBTFUL: "Check the address, the credentials and what they permit.",
    Trouble.LASTING: "Check the address and the storage_options.",
}
_LOCAL_ADVICE = "Check the path, its permissions and the disk."


class Connection:
    """A filesystem by its URL, and the kinds of calls that have succeeded on it."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        patience: Patience,
        known: set[str] | None = None,
        is_fresh: bool = False,
    ) -> None:
        """`known`: kinds of calls that have succeeded before; may be shared. `is_fresh`: not fsspec's cached instance.

        Raises: ConfigError as `open_filesystem`.
        """
        self.patience = patience
        self.known = set() if known is None else known
        self.filesystem, self.path = open_filesystem(url, options)
        self._is_stale = is_fresh

    @property
    def is_local(self) -> bool:
        """Whether calls have no network that they could wait for."""
        return is_local(self.filesystem)

    def call(self, doing: str, kind: str, attempt: Callable[[Any], Given], num_bytes: int | None = None) -> Given:
        """Return what `attempt` returns for the filesystem, tried again with patience.

        `doing` begins the message: "Reading s3://bucket/x". `kind` of call: where none has succeeded yet, a refusal is
        believed after seconds. `num_bytes` to transfer; None where an attempt may take any time.

        Raises: StoreError; a PipelineError that `attempt` raises.
        """
        try:
            given = self.patience.call(
                lambda: attempt(self._fresh_filesystem()),
                is_known=kind in self.known,
                is_local=self.is_local,
                num_bytes=num_bytes,
                before_retry=self.renew,
            )
        except GaveUpError as error:
            if isinstance(error.error, PipelineError):
                raise error.error from None
            advice = _LOCAL_ADVICE if self.is_local else _ADVICE[error.trouble]
            raise StoreError(f"{doing} failed: {error}. {advice}", error.trouble) from error
        self.known.add(kind)
        return given

    def renew(self) -> None:
        """Make the next call open the filesystem anew: another session, and credentials that are looked up again."""
        self._is_stale = True

    def _fresh_filesystem(self) -> Any:
        if self._is_stale and not self.is_local:
            old = self.filesystem
            self.filesystem = type(old)(*old.storage_args, **old.storage_options, skip_instance_cache=True)
        self._is_stale = False
        return self.filesystem


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the filesystem of `url` and the path on it.

    Raises:
        ConfigError: the protocol is unknown, the package of its filesystem is not installed, it has no such options,
            or an archive that the URL names cannot be read.
    """
    try:
        if "://" not in url:  # a local name may hold "::", which chains URLs
            filesystem = fsspec.filesystem("file", **options)
            return filesystem, filesystem._strip_protocol(url)
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError, TypeError, OSError, BadZipFile) as error:  # zip:// opens its archive here
        raise ConfigError(
            f"Cannot open {url!r}: {error}. Use a local path or a URL whose filesystem is installed, "
            "for example pip install 'batchloom[s3]' for s3://."
        ) from error
    return filesystem, path
