"""Credentials of URLs and storage options: what is written and printed has none of them."""

import pytest

from batchloom.models.errors import CheckpointError
from batchloom.models.redaction import public_name, redacted, redacted_values, shareable
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, RowError
from batchloom.pipelines.stores.storage import Store

SECRET = "s3cr3t-W0RD"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host/x.parquet",
        f"http://user:a@{SECRET}@host/x.parquet",
        f"https://{SECRET}@host/x.parquet",
        f"sftp://me:{SECRET}@host/x",
        f"abfs://container%3A{SECRET}@account/x",
        f"zip://a.parquet::https://user:{SECRET}@host/x.zip",
        f"Cannot connect to URL('http://user:{SECRET}@127.0.0.1:1/x'): refused",
        f"https://bucket.s3.amazonaws.com/x.parquet?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
        f"Max retries exceeded with url: /bucket/x?X-Amz-Credential={SECRET} (Caused by ...)",
        f"https://account.blob.core.windows.net/x?sv=2024&sig={SECRET}%3D",
        f"https://host/x.parquet?{SECRET}abcdef",
        f"https://host/x.parquet#access_token={SECRET}",
        f"https://proxy/?url=http%3A%2F%2Fhost%2Fx%3Ftoken%3D{SECRET}",
        f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={SECRET}",
    ],
)
def test_a_credential_in_a_text_is_hidden(text: str) -> None:
    assert SECRET not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)
    assert SECRET not in str(CheckpointError(text))
    assert SECRET not in str(InputError(text))
    assert SECRET not in RowError("read", "x", text).message


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/part-????.parquet",
        "s3://bucket/a@b/x.parquet",
        "hf://org/name@0123abc",
        "hf://name@main",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://me@host/x",
        "github://org:repository@main/x",
        "s3://bucket/x?versionId=abc",
        "Is it so? a = b; c=d & e=f, mail me@example.org",
        "/local/what?/a=b@c",
    ],
)
def test_a_text_without_credentials_stays(text: str) -> None:
    assert redacted(text) == text
    assert redacted_values({"a": [text]}) == {"a": [text]}


SECRETS = (
    "key secret token sas sas_url pwd passwd password auth passphrase cookie cookies bearer headers credential "
    "connection_string account_key s3_additional_kwargs a_name_of_tomorrow"
)


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_storage_option_is_written_only_where_it_is_known_to_be_harmless(name: str) -> None:
    options = {name: SECRET, "anon": False, "client_kwargs": {name: {"x": SECRET}, "region_name": "eu-1"}}
    assert shareable(options) == {"anon": False, "client_kwargs": {"region_name": "eu-1"}}


def test_an_endpoint_with_a_password_is_left_out_and_one_without_is_written() -> None:
    options = {"endpoint_url": f"http://user:{SECRET}@host", "client_kwargs": {"endpoint_url": "http://host"}}
    assert shareable(options) == {"client_kwargs": {"endpoint_url": "http://host"}}


def test_the_name_of_a_signed_url_is_the_same_when_it_is_signed_anew() -> None:
    assert public_name("x.parquet?X-Amz-Signature=a") == public_name("x.parquet?X-Amz-Signature=b") == "x.parquet"
    assert public_name("get?id=1&sig=a") == public_name("get?id=1&sig=b") != public_name("get?id=2&sig=a")


def test_what_opens_a_store_is_not_in_the_representations_that_logs_hold() -> None:
    options = {"key": SECRET}
    assert SECRET not in repr([InputConfig(paths=("a",), storage_options=options), Store("s3://a", options)])
