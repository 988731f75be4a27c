"""What nodes without batchloom need to run its jobs: a wheel of this version, and the packages that it stands on."""

import hashlib
import os
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import batchloom
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tables.marks import DELTA, ICEBERG

CLUSTERS_OWN = {"ray"}  # of the cluster's version, which everything there has to share
WHEEL = "Wheel-Version: 1.0\nGenerator: batchloom\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
OF_PROTOCOLS = {  # what reads and writes these URLs
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "hf": "huggingface_hub",
}  # fmt: skip
OF_TABLES = {DELTA: "deltalake", ICEBERG: "pyiceberg"}


def write_wheel(folder: Path) -> Path:
    """Write a wheel of the batchloom that runs here, installed or a checkout, and return its path.

    It names no requirements: Ray installs such a wheel into a folder of its own with all that it requires, torch again.
    Its build tag is made of its content: a cluster keeps what has once come under a name, and would run the code of
    before.
    """
    own_version = version("batchloom")
    name = f"batchloom-{own_version}"
    metadata = f"Metadata-Version: 2.1\nName: batchloom\nVersion: {own_version}\n"
    files = {
        **dict(_modules()),
        f"{name}.dist-info/METADATA": metadata.encode(),
        f"{name}.dist-info/WHEEL": WHEEL.encode(),
    }
    record = f"{name}.dist-info/RECORD"
    lines = [f"{path},sha256={_hash(content)},{len(content)}" for path, content in files.items()]
    listed = "\n".join([*lines, f"{record},,", ""]).encode()
    build = f"0{hashlib.sha256(listed).hexdigest()[:16]}"  # a build tag begins with a digit
    path = folder / f"{name}-{build}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**files, record: listed}.items():
            # without a time: equal code is an equal file
            wheel.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def requirements(urls: Iterable[str], tables: Iterable[str] = ()) -> list[str]:
    """Return batchloom's requirements in the versions that are installed here, and what the URLs' protocols and these
    kinds of tables need.

    Raises: ConfigError where such a package is not installed here.
    """
    own = [line for line in distribution("batchloom").requires or [] if "extra ==" not in line]
    needed = [name for line in own for name in re.findall(r"^[\w.-]+", line)]
    needed += sorted({OF_PROTOCOLS[protocol] for protocol in map(_protocol, urls) if protocol in OF_PROTOCOLS})
    needed += [OF_TABLES[kind] for kind in sorted(tables) if kind in OF_TABLES]
    return [f"{name}=={_version(name)}" for name in needed if name not in CLUSTERS_OWN]


def _modules() -> Iterator[tuple[str, bytes]]:
    """Yield our files; in a checkout, folders are links."""
    assert batchloom.__file__ is not None
    root = Path(batchloom.__file__).parent
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".py" or name == "py.typed":
                yield f"batchloom/{path.relative_to(root).as_posix()}", path.read_bytes()


def _hash(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _protocol(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _version(name: str) -> str:
    """Return a package's version; what marks a build (2.9.0+cu128) is this machine's own."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        raise ConfigError(
            f"--ship sends the packages of this machine by their versions, and {name} is not installed here. "
            f"Install it: pip install {name}."
        ) from None
