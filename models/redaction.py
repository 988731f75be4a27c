"""What may be written or printed of URLs and of storage options: no credentials. It opens nothing.

Both rules are lists of what is allowed. A credential under a name that nobody thought of is therefore not written.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_HARMLESS = """
account_host account_name addressing_style anon asynchronous auto_mkdir block_size cache_regions cache_type
client_kwargs config_kwargs connect_timeout consistency container_name default_block_size default_cache_type
default_fill_cache default_location endpoint endpoint_override endpoint_url fill_cache fo host listings_expiry_time
max_attempts max_concurrency max_paths max_pool_connections port profile profile_name project protocol
read_timeout region region_name remote_options remote_protocol requester_pays retries s3 scheme session_kwargs
signature_version skip_instance_cache target_options target_protocol timeout use_listings_cache use_ssl verify
version_aware
"""
HARMLESS_OPTIONS = frozenset(_HARMLESS.split())
"""Names of fsspec filesystems' arguments, and of mappings in them, that say where and how, and never who."""
HARMLESS_PARAMETERS = frozenset({"versionid", "generation", "download"})
"""Of URLs' queries: they say which file."""
_SIGNING = re.compile(
    r"x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|s[a-z]{1,2}|token",
    re.IGNORECASE,
)
_NOT_USERS = ("hf", "github")  # hf://name@revision, github://org:repository@branch
_AUTHORITY = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*)(:/{1,2})([^/\s\"'<>]*)@")
_PARAMETER = re.compile(r"([?&;#]|%3[fF]|%26)([\w.~\-\[\]%]+?)(=|%3[dD])([^\s&;#\"'<>()\\]+)")
_BARE_QUERY = re.compile(r"\b(https?://[^\s?\"'<>]+\?)([\w.~%+/\-]{12,}={0,2})(?=$|[\s\"'<>),\\])")


def redacted(text: str) -> str:
    """Return a text with the credentials in its URLs hidden: user:password@, and the values of query parameters.

    A user without a password stays outside of http, where it may be a token: abfs://container@account, sftp://me@host.
    """
    if "/" not in text and "=" not in text:
        return text
    text = _AUTHORITY.sub(_without_password, text)
    text = _BARE_QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _PARAMETER.sub(_without_value, text)


def redacted_values(values: Any) -> Any:
    """Return nested mappings and lists with every text redacted."""
    match values:
        case str():
            return redacted(values)
        case Mapping():
            return {name: redacted_values(value) for name, value in values.items()}
        case list() | tuple():
            return [redacted_values(value) for value in values]
    return values


def shareable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storage options that may be written: endpoints and regions. All others have to be given again.

    A value that holds a credential, such as an endpoint with a password, is left out: a part of it would not work.
    """
    return {
        name: shareable(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if name.lower() in HARMLESS_OPTIONS and _is_plain(value)
    }


def public_name(name: str) -> str:
    """Return a file's name without the query that a URL may end in, which may be a signature.

    Parameters that are no signature tell files apart, so their hash stays: the name is the same when a URL is signed
    anew.
    """
    path, _, query = name.partition("?")
    told = [pair for pair in query.split("&") if pair and not _SIGNING.fullmatch(pair.partition("=")[0])]
    return f"{path}?{hashlib.sha256('&'.join(told).encode()).hexdigest()[:12]}" if told else path


def _is_plain(value: Any) -> bool:
    match value:
        case str():
            return redacted(value) == value
        case None | bool() | int() | float() | Mapping():
            return True
        case Sequence():
            return all(_is_plain(item) and not isinstance(item, Mapping) for item in value)
    return False


def _without_password(found: re.Match[str]) -> str:
    scheme, slashes, user = found.groups()
    is_secret = ":" in user or "%3a" in user.lower() or scheme.lower() in ("http", "https")
    if scheme.lower() in _NOT_USERS or not is_secret:
        return found[0]
    return f"{scheme}{slashes}{HIDDEN}@"


def _without_value(found: re.Match[str]) -> str:
    mark, name, equals, _ = found.groups()
    return found[0] if name.lower() in HARMLESS_PARAMETERS else f"{mark}{name}{equals}{HIDDEN}"
