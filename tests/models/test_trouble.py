"""What every error that stores are known to raise means: those of s3fs as they are, others' built like them."""

import errno
import http.client
import socket
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import google.api_core.exceptions
import google.auth.exceptions
import pyarrow as pa
import pytest
import requests.exceptions
import urllib3.exceptions
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from aiohttp.http_exceptions import BadHttpMessage
from botocore.parsers import ResponseParserError
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error
from s3fs.utils import FileExpired

from batchloom.models.trouble import Trouble, trouble_of

PASSING, DOUBTFUL, LASTING = Trouble.PASSING, Trouble.DOUBTFUL, Trouble.LASTING


def answer(code: str, status: int) -> botocore.exceptions.ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetObject")


@pytest.mark.parametrize(
    ("code", "status", "trouble"),
    [
        ("SlowDown", 503, PASSING), ("ServiceUnavailable", 503, PASSING), ("503", 503, PASSING),
        ("InternalError", 500, PASSING), ("500", 500, PASSING), ("502", 502, PASSING), ("504", 504, PASSING),
        ("429", 429, PASSING), ("Throttling", 400, PASSING), ("RequestTimeout", 400, PASSING),
        ("IncompleteBody", 400, PASSING), ("BadDigest", 400, PASSING), ("XAmzContentSHA256Mismatch", 400, PASSING),
        ("OperationAborted", 409, PASSING),
        ("AccessDenied", 403, DOUBTFUL), ("403", 403, DOUBTFUL), ("InvalidAccessKeyId", 403, DOUBTFUL),
        ("SignatureDoesNotMatch", 403, DOUBTFUL), ("RequestTimeTooSkewed", 403, DOUBTFUL), ("401", 401, DOUBTFUL),
        ("InvalidObjectState", 403, LASTING),
        ("ExpiredToken", 400, DOUBTFUL), ("InvalidToken", 400, DOUBTFUL), ("TokenRefreshRequired", 400, DOUBTFUL),
        ("400", 400, DOUBTFUL),
        ("NoSuchKey", 404, DOUBTFUL), ("404", 404, DOUBTFUL),
        ("NoSuchBucket", 404, LASTING), ("InvalidBucketName", 400, LASTING), ("InvalidArgument", 400, LASTING),
        ("PreconditionFailed", 412, LASTING), ("InvalidRange", 416, LASTING), ("NotImplemented", 501, LASTING),
        ("PermanentRedirect", 301, LASTING),
    ],
)  # fmt: skip
def test_an_answer_of_s3_counts_as_it_is_and_as_s3fs_translates_it(code: str, status: int, trouble: Trouble) -> None:
    assert trouble_of(answer(code, status)) is trouble
    translated = translate_boto_error(answer(code, status))
    assert isinstance(translated, OSError)
    assert trouble_of(translated) is trouble


def raised_from(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def raised_while(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__context__ = inner
    return outer


def from_library(name: str, base: type[Exception] = Exception, **attributes: Any) -> Exception:
    """An exception of a package that is not installed here, with the attributes that its source gives it."""
    module, _, kind = name.rpartition(".")
    return type(kind, (base,), {"__module__": module, **attributes})("m")


def answered(name: str, status: int, **attributes: Any) -> Exception:
    return from_library(f"azure.core.exceptions.{name}", status_code=status, **attributes)


def connector_error(inner: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(ConnectionKey("h", 1, False, True, None, None, None), inner)


REQUEST = RequestInfo("http://h", "GET", {}, "http://h")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        # the operating system and the network
        (TimeoutError(), PASSING),
        (FSTimeoutError(), PASSING),
        (ConnectionResetError(errno.ECONNRESET, "reset"), PASSING),
        (BrokenPipeError(errno.EPIPE, "pipe"), PASSING),
        (ConnectionRefusedError(errno.ECONNREFUSED, "nobody"), DOUBTFUL),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), PASSING),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), DOUBTFUL),
        (OSError(errno.EHOSTUNREACH, "no route"), PASSING),
        (OSError(errno.EIO, "input/output error"), PASSING),
        (ssl.SSLCertVerificationError("self-signed"), LASTING),
        (ssl.SSLEOFError("eof"), DOUBTFUL),
        (EOFError(), PASSING),
        # memory
        (MemoryError(), PASSING),
        (pa.ArrowMemoryError("malloc of size 1 failed"), PASSING),
        # files of a store
        (PermissionError("Access Denied"), DOUBTFUL),
        (FileNotFoundError("bucket/key"), DOUBTFUL),
        (FileNotFoundError(errno.ENOENT, "No such file", "bucket/key"), DOUBTFUL),
        (OSError("Forbidden: b/k"), DOUBTFUL),
        (FileExistsError("b/k"), LASTING),
        (FileExpired("b/k", "etag"), PASSING),  # EBUSY alone; with its cause, 412, below
        (raised_from(FileExpired("b/k", "etag"), translate_boto_error(answer("PreconditionFailed", 412))), LASTING),
        # s3fs: botocore and aiohttp
        (botocore.exceptions.ReadTimeoutError(endpoint_url="u"), PASSING),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="u"), PASSING),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="u"), PASSING),
        (botocore.exceptions.ResponseStreamingError(error="e"), PASSING),
        (botocore.exceptions.HTTPClientError(error="e"), PASSING),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), PASSING),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="u"), PASSING),
        (
            raised_from(
                botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
                connector_error(ConnectionRefusedError(errno.ECONNREFUSED, "nobody")),
            ),
            DOUBTFUL,
        ),
        (
            raised_while(
                botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
                connector_error(socket.gaierror(socket.EAI_AGAIN, "try again")),
            ),
            PASSING,
        ),
        (botocore.exceptions.NoCredentialsError(), DOUBTFUL),
        (botocore.exceptions.CredentialRetrievalError(provider="p", error_msg="e"), DOUBTFUL),
        (botocore.exceptions.ParamValidationError(report="r"), LASTING),
        (botocore.exceptions.InvalidRegionError(region_name="r"), LASTING),
        (ResponseParserError("xml"), PASSING),
        (aiohttp.ClientPayloadError(), PASSING),
        (aiohttp.ServerDisconnectedError(), PASSING),
        (aiohttp.ServerTimeoutError(), PASSING),
        (aiohttp.ClientResponseError(REQUEST, (), status=503), PASSING),
        (aiohttp.ClientResponseError(REQUEST, (), status=403), DOUBTFUL),
        (aiohttp.ClientResponseError(REQUEST, (), status=400), LASTING),
        (aiohttp.InvalidURL("u"), LASTING),
        (
            raised_while(
                botocore.exceptions.HTTPClientError(error="e"),
                raised_from(aiohttp.ClientResponseError(REQUEST, (), status=400), BadHttpMessage("no HTTP")),
            ),
            PASSING,
        ),
        (urllib3.exceptions.IncompleteRead(1, 2), PASSING),
        (http.client.IncompleteRead(b""), PASSING),
        # gcsfs: its own, google.auth, requests
        (from_library("gcsfs.retry.HttpError", code=503), PASSING),
        (from_library("gcsfs.retry.HttpError", code="429"), PASSING),
        (from_library("gcsfs.retry.HttpError", code=401), DOUBTFUL),
        (from_library("gcsfs.retry.HttpError", code=400), LASTING),
        (from_library("gcsfs.retry.ChecksumError"), PASSING),
        (google.auth.exceptions.TransportError(), PASSING),
        (google.auth.exceptions.RefreshError(), DOUBTFUL),
        (google.api_core.exceptions.ServiceUnavailable("m"), PASSING),
        (google.api_core.exceptions.Forbidden("m"), DOUBTFUL),
        (requests.exceptions.ProxyError(), PASSING),
        (requests.exceptions.ReadTimeout(), PASSING),
        (requests.exceptions.ChunkedEncodingError(), PASSING),
        # adlfs: Azure's, alone and inside what adlfs makes of them
        (from_library("azure.core.exceptions.ServiceRequestError"), PASSING),
        (from_library("azure.core.exceptions.ServiceResponseError"), PASSING),
        (from_library("azure.core.exceptions.IncompleteReadError", status_code=None), PASSING),
        (answered("HttpResponseError", 503), PASSING),
        (answered("ClientAuthenticationError", 403), DOUBTFUL),
        (answered("ResourceModifiedError", 412), LASTING),
        (
            from_library(
                "azure.core.exceptions.ResourceNotFoundError", status_code=404, error_code="ContainerNotFound"
            ),
            LASTING,
        ),
        (
            raised_from(
                RuntimeError("Failed to upload block: m!"),
                answered("HttpResponseError", 500),
            ),
            PASSING,
        ),
        (
            raised_from(
                RuntimeError("Failed to upload block: m!"),
                from_library("azure.core.exceptions.ServiceRequestError"),
            ),
            PASSING,
        ),
        # huggingface_hub
        (
            from_library("huggingface_hub.errors.HfHubHTTPError", response=SimpleNamespace(status_code=502)),
            PASSING,
        ),
        # errors that are no store's
        (ValueError("Bad Request"), LASTING),
        (TypeError("unexpected keyword argument"), LASTING),
        (ImportError("Install s3fs"), LASTING),
        (RuntimeError("?"), LASTING),
    ],
)
def test_an_exception_of_a_store_means(error: BaseException, trouble: Trouble) -> None:
    assert trouble_of(error) is trouble


@pytest.mark.parametrize(
    ("number", "trouble"),
    [
        (errno.ENOENT, LASTING), (errno.EACCES, LASTING), (errno.EROFS, LASTING), (errno.ENOSPC, LASTING),
        (errno.EISDIR, LASTING), (errno.ENAMETOOLONG, LASTING),
        (errno.ESTALE, PASSING), (errno.EIO, PASSING), (errno.EMFILE, PASSING), (errno.ETIMEDOUT, PASSING),
    ],
)  # fmt: skip
def test_a_local_disk_says_what_is_true_but_may_be_in_trouble_too(number: int, trouble: Trouble) -> None:
    assert trouble_of(OSError(number, "m"), is_local=True) is trouble


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    first, second = RuntimeError("1"), RuntimeError("2")
    first.__cause__, second.__cause__ = second, first
    assert trouble_of(first) is LASTING
