"""Machines that a rank runs on: the makers' peak figures, and which one this is. It imports no torch."""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware of one rank. The defaults are the maker's figures of an NVIDIA H100 SXM."""

    name: str = "NVIDIA H100 SXM"
    memory: float = 80e9
    """Memory of a device, in bytes."""
    bandwidth: float = 3.35e12
    """Bytes a second between a device and its memory."""
    half_flops: float = 989e12
    """Operations a second in float16 and bfloat16, dense."""
    float_flops: float = 67e12
    """Operations a second in float32."""
    link: float = 450e9
    """Bytes a second from one device to another, in each direction."""
    latency: float = 10e-6
    """Seconds of an all-reduce of a few bytes."""
    storage: float = 5e9
    """Bytes a second from storage to all ranks of a replica together."""


PCIE_4, PCIE_5 = 32e9, 64e9  # bytes a second, each way, of 16 lanes
MACHINES = {
    "h100": Machine(),
    "h100-pcie": Machine(name="NVIDIA H100 PCIe", bandwidth=2.0e12, half_flops=756e12, float_flops=51e12, link=PCIE_5),
    "h200": Machine(name="NVIDIA H200 SXM", memory=141e9, bandwidth=4.8e12),
    "a100": Machine(
        name="NVIDIA A100 SXM 80 GB", bandwidth=2.039e12, half_flops=312e12, float_flops=19.5e12, link=300e9
    ),
    "a100-40": Machine(
        name="NVIDIA A100 40 GB", memory=40e9, bandwidth=1.555e12, half_flops=312e12, float_flops=19.5e12, link=300e9
    ),
    "l40s": Machine(
        name="NVIDIA L40S", memory=48e9, bandwidth=864e9, half_flops=362e12, float_flops=91.6e12, link=PCIE_4
    ),
    "l4": Machine(name="NVIDIA L4", memory=24e9, bandwidth=300e9, half_flops=121e12, float_flops=30.3e12, link=PCIE_4),
    "a10g": Machine(name="NVIDIA A10G", memory=24e9, bandwidth=600e9, half_flops=70e12, float_flops=35e12, link=PCIE_4),
    "v100": Machine(
        name="NVIDIA V100 SXM2 16 GB", memory=16e9, bandwidth=900e9, half_flops=125e12, float_flops=15.7e12, link=150e9
    ),
    "t4": Machine(name="NVIDIA T4", memory=16e9, bandwidth=320e9, half_flops=65e12, float_flops=8.1e12, link=16e9),
}
"""By a short name: peak figures of the makers' data sheets, dense, of float16 or bfloat16 in tensor cores."""

# What drivers call them; the first that fits.
_DRIVERS_NAMES = (
    ("h200", "h200"),
    ("h100.*pcie", "h100-pcie"),
    ("h100", "h100"),
    ("a100.*80", "a100"),
    ("a100", "a100-40"),
    ("l40s", "l40s"),
    (r"l4\b", "l4"),
    ("a10g", "a10g"),
    ("v100", "v100"),
    (r"t4\b", "t4"),
)
_DRIVER = Path("/proc/driver/nvidia/gpus")


def machine_named(name: str) -> Machine | None:
    """Return the machine that a driver calls so: "NVIDIA A100-SXM4-80GB"; None where its figures are not known."""
    return next((MACHINES[key] for pattern, key in _DRIVERS_NAMES if re.search(pattern, name.lower())), None)


def gpus_here(driver: Path = _DRIVER) -> list[str]:
    """Return what the driver calls the GPUs of this machine; none where there is no NVIDIA driver."""
    return list(_told(driver))


def name_of_this(device: str) -> str:
    """Return the name of what a model on `device` ("cpu" or "cuda") computes on here."""
    if device != "cpu":
        return next(iter(gpus_here()), device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _told(driver: Path) -> Iterator[str]:
    for file in sorted(driver.glob("*/information")):
        found = re.search(r"^Model:\s*(.+?)\s*$", file.read_text(), re.MULTILINE)
        if found:
            yield found.group(1)
