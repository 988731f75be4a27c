"""OpenStack Swift with its S3 API on loopback: a real object store, of one disk and one replica. It knows no faults.

Four servers (account, container, object, proxy) run from an environment of their own: requirements.txt.
"""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.processes import free_ports

USER, KEY = "test:tester", "testing"  # tempauth's account: S3's access key and secret
RINGS = ("account", "container", "object")
FILTERS = {
    "catch_errors": "",
    "healthcheck": "",
    "listing_formats": "",
    "s3api": "location = us-east-1\n",
    "tempauth": f"user_{USER.replace(':', '_')} = {KEY} .admin\n",
    "bulk": "",
    "slo": "",
}
BUILD_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    ring = RingBuilder(4, 1, 1)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1})
    ring.rebalance()
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""


@contextmanager
def running(folder: Path, programs: Path) -> Iterator[str]:
    """Yield the S3 endpoint of a Swift that keeps its files in `folder`; `programs` is where its commands are."""
    ports = dict(zip((*RINGS, "proxy"), free_ports(4), strict=True))
    (folder / "node" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = faults\n")
    arguments = [str(folder), *(str(ports[ring]) for ring in RINGS)]
    subprocess.run([str(programs / "python"), "-c", BUILD_RINGS, *arguments], check=True)
    for ring in RINGS:
        _configure(folder, ring, ports[ring], [], "")
    _configure(folder, "proxy", ports["proxy"], FILTERS, "account_autocreate = yes\n")
    endpoint = f"http://127.0.0.1:{ports['proxy']}"
    with ExitStack() as stack:
        for server in ports:
            stack.enter_context(_process(folder, programs, server))
        _wait_for(f"{endpoint}/healthcheck", folder)
        yield endpoint


def _configure(folder: Path, server: str, port: int, filters: "dict[str, str] | list[str]", options: str) -> None:
    sections = [
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nswift_dir = {folder}\nmount_check = false\n"
        f"devices = {folder / 'node'}\nlog_level = WARNING\nuser = {os.environ.get('USER', 'root')}\n",
        f"[pipeline:main]\npipeline = {' '.join([*filters, f'{server}-server'])}\n",
        f"[app:{server}-server]\nuse = egg:swift#{server}\n{options}",
        *(f"[filter:{name}]\nuse = egg:swift#{name}\n{FILTERS[name]}" for name in filters),
    ]
    (folder / f"{server}.conf").write_text("".join(sections))


@contextmanager
def _process(folder: Path, programs: Path, server: str) -> Iterator[None]:
    command = [str(programs / f"swift-{server}-server"), str(folder / f"{server}.conf"), "-v"]
    with open(folder / f"{server}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.log"))
                raise RuntimeError(f"Swift does not answer at {url}:\n{logs}") from None
            time.sleep(0.1)
        else:
            return
