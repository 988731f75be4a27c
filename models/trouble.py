"""Trouble is what an error of a store means for the next attempt. It imports no store's package: types go by name."""

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any


class Trouble(Enum):
    """What to expect of a second attempt."""

    PASSING = "it passes: a timeout, a reset connection, throttling, a server's own error, a lack of memory"
    DOUBTFUL = "an answer that is the truth or that of an outage: not permitted, not found, nobody there"
    LASTING = "the same answer each time: no such bucket, a wrong argument, a missing package"


def trouble_of(error: BaseException, is_local: bool = False) -> Trouble:
    """Return what an error of a filesystem means; `is_local`: of a local disk, whose answers are true.

    A store's own answer, anywhere in the chain of causes, decides before the reason why it could not be reached, and
    this before the types of other exceptions, of which the outermost that says anything counts.
    """
    chain = list(_chain(error))
    if any(_is_of(each, _GARBLED) for each in chain):
        return Trouble.PASSING
    found = [_of_answer(each) for each in chain] if not is_local else []
    found += [_of_connection(each) for each in chain]
    found += [_of_type(each, is_local) for each in chain]
    return next((trouble for trouble in found if trouble is not None), Trouble.LASTING)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it; aiohttp keeps the operating system's error in an attribute."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        context = None if error.__suppress_context__ else error.__context__
        inner = getattr(error, "os_error", None) or error.__cause__ or context
        error = inner if isinstance(inner, BaseException) else None


# ------------------------------------------------------------------------------------------------ what a store answers

_GARBLED = "aiohttp.http_exceptions.HttpProcessingError"  # not HTTP; aiohttp gives it the status 400, as if answered so

_CODES = {  # S3's, whose meaning the status does not tell
    "NoSuchBucket": Trouble.LASTING,
    "ContainerNotFound": Trouble.LASTING,  # Azure's
    "InvalidObjectState": Trouble.LASTING,  # in an archive: somebody has to restore it
    "ExpiredToken": Trouble.DOUBTFUL,
    "InvalidToken": Trouble.DOUBTFUL,
    "TokenRefreshRequired": Trouble.DOUBTFUL,
    "400": Trouble.DOUBTFUL,  # botocore's for a HEAD, whose answer has no body: an expired token, perhaps
    "BadDigest": Trouble.PASSING,
    "IncompleteBody": Trouble.PASSING,
    "InternalError": Trouble.PASSING,
    "RequestTimeout": Trouble.PASSING,
    "ServiceUnavailable": Trouble.PASSING,
    "SlowDown": Trouble.PASSING,
    "Throttling": Trouble.PASSING,
    "ThrottlingException": Trouble.PASSING,
    "XAmzContentSHA256Mismatch": Trouble.PASSING,
}
_STATUSES = {
    401: Trouble.DOUBTFUL,
    403: Trouble.DOUBTFUL,
    404: Trouble.DOUBTFUL,
    408: Trouble.PASSING,
    409: Trouble.PASSING,
    425: Trouble.PASSING,
    429: Trouble.PASSING,
    501: Trouble.LASTING,  # not implemented
    505: Trouble.LASTING,  # HTTP version not supported
}


def _of_answer(error: BaseException) -> Trouble | None:
    """Return what an HTTP answer means, from wherever the store's library keeps it."""
    code, status = _code(error), _status(error)
    if code in _CODES:
        return _CODES[code]
    if status is None or status < 300:
        return None
    return _STATUSES.get(status, Trouble.PASSING if status >= 500 else Trouble.LASTING)


def _code(error: BaseException) -> str | None:
    """botocore keeps it in `response`, Azure in `error_code`."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return str(response.get("Error", {}).get("Code"))
    return getattr(error, "error_code", None)


def _status(error: BaseException) -> int | None:
    """botocore: response["ResponseMetadata"]; requests and httpx: response.status_code; Azure: status_code; aiohttp:
    status; gcsfs: code, which may be a text."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        metadata, told = response.get("ResponseMetadata", {}), response.get("Error", {})
        return _as_status(metadata.get("HTTPStatusCode")) or _as_status(told.get("Code"))
    places = ((response, "status_code"), (error, "status_code"), (error, "status"), (error, "code"))
    found = (_as_status(getattr(place, name, None)) for place, name in places)
    return next((status for status in found if status is not None), None)


def _as_status(value: Any) -> int | None:
    is_number = isinstance(value, int | str) and str(value).isdigit()
    return int(value) if is_number and 100 <= int(value) < 600 else None


# ------------------------------------------------------------------------------------------------- types of exceptions

_LIBRARIES = {  # exceptions without an answer, by the names of their classes or base classes
    "aiohttp.client_exceptions.ClientError": Trouble.PASSING,
    "aiohttp.client_exceptions.InvalidURL": Trouble.LASTING,
    "azure.core.exceptions.IncompleteReadError": Trouble.PASSING,
    "azure.core.exceptions.ServiceRequestError": Trouble.PASSING,
    "azure.core.exceptions.ServiceResponseError": Trouble.PASSING,
    "botocore.exceptions.ConnectionError": Trouble.PASSING,
    "botocore.exceptions.CredentialRetrievalError": Trouble.DOUBTFUL,
    "botocore.exceptions.HTTPClientError": Trouble.PASSING,
    "botocore.exceptions.IncompleteReadError": Trouble.PASSING,
    "botocore.exceptions.NoCredentialsError": Trouble.DOUBTFUL,
    "botocore.exceptions.TokenRetrievalError": Trouble.DOUBTFUL,
    "botocore.parsers.ResponseParserError": Trouble.PASSING,
    "gcsfs.retry.ChecksumError": Trouble.PASSING,
    "google.auth.exceptions.RefreshError": Trouble.DOUBTFUL,
    "google.auth.exceptions.TransportError": Trouble.PASSING,
    "http.client.HTTPException": Trouble.PASSING,
    "httpx.TransportError": Trouble.PASSING,
    "paramiko.ssh_exception.SSHException": Trouble.PASSING,
    "requests.exceptions.ChunkedEncodingError": Trouble.PASSING,
    "requests.exceptions.ConnectionError": Trouble.PASSING,
    "requests.exceptions.Timeout": Trouble.PASSING,
    "urllib3.exceptions.HTTPError": Trouble.PASSING,
}
_PASSING_NUMBERS = {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOLCK,
    errno.ENOMEM, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EPIPE,
    errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO,
}  # fmt: skip


def _of_connection(error: BaseException) -> Trouble | None:
    """Return why there is no connection, as the operating system says; libraries wrap it in errors of their own."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Trouble.LASTING
    if isinstance(error, socket.gaierror):
        return Trouble.PASSING if error.errno == socket.EAI_AGAIN else Trouble.DOUBTFUL
    return Trouble.DOUBTFUL if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED else None


def _of_type(error: BaseException, is_local: bool) -> Trouble | None:
    """Return what the type of an exception means; None where it says nothing, as a RuntimeError's."""
    if isinstance(error, MemoryError | TimeoutError | ConnectionError | EOFError):
        return Trouble.PASSING  # Arrow's ArrowMemoryError and fsspec's FSTimeoutError are such
    if (known := _library(error)) is not None:
        return known
    if not isinstance(error, OSError):
        return None
    if error.errno in _PASSING_NUMBERS:
        return Trouble.PASSING
    is_lasting = is_local or isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError)
    is_refusal = isinstance(error, FileNotFoundError | PermissionError) or error.errno is None  # gcsfs' 403 has none
    return Trouble.DOUBTFUL if is_refusal and not is_lasting else Trouble.LASTING


def _library(error: BaseException) -> Trouble | None:
    return next((_LIBRARIES[name] for name in _names(error) if name in _LIBRARIES), None)


def _is_of(error: BaseException, name: str) -> bool:
    return name in _names(error)


def _names(error: BaseException) -> list[str]:
    """Return the full names of an exception's class and of its base classes."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
