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


PCIE_3, PCIE_4, PCIE_5 = 16e9, 32e9, 64e9  # bytes a second, each way, of 16 lanes


def _gpu(name: str, gigabytes: int, bandwidth: float, half: float, single: float, link: float) -> Machine:
    """`half`, `single`: TFLOP/s in tensor cores and in float32; `bandwidth`, `link`: bytes a second."""
    return Machine(
        name=f"NVIDIA {name}", memory=gigabytes * 1e9, bandwidth=bandwidth, half_flops=half * 1e12,
        float_flops=single * 1e12, link=link,
    )  # fmt: skip


MACHINES = {
    "h100": Machine(),
    "h100-pcie": _gpu("H100 PCIe", 80, 2.0e12, 756, 51, PCIE_5),
    "h100-nvl": _gpu("H100 NVL", 94, 3.9e12, 835, 60, 300e9),
    "h200": _gpu("H200 SXM", 141, 4.8e12, 989, 67, 450e9),
    "h200-nvl": _gpu("H200 NVL", 141, 4.8e12, 835, 60, 450e9),
    "a100": _gpu("A100 SXM 80 GB", 80, 2.039e12, 312, 19.5, 300e9),
    "a100-40": _gpu("A100 SXM 40 GB", 40, 1.555e12, 312, 19.5, 300e9),
    "a100-pcie": _gpu("A100 PCIe 80 GB", 80, 1.935e12, 312, 19.5, PCIE_4),
    "a100-40-pcie": _gpu("A100 PCIe 40 GB", 40, 1.555e12, 312, 19.5, PCIE_4),
    "l40s": _gpu("L40S", 48, 864e9, 362, 91.6, PCIE_4),
    "l4": _gpu("L4", 24, 300e9, 121, 30.3, PCIE_4),
    "a10": _gpu("A10", 24, 600e9, 125, 31.2, PCIE_4),
    "a10g": _gpu("A10G", 24, 600e9, 70, 35, PCIE_4),
    "v100": _gpu("V100 SXM2 16 GB", 16, 900e9, 125, 15.7, 150e9),
    "v100-32": _gpu("V100 SXM2 32 GB", 32, 900e9, 125, 15.7, 150e9),
    "v100-pcie": _gpu("V100 PCIe 16 GB", 16, 900e9, 112, 14, PCIE_3),
    "v100-32-pcie": _gpu("V100 PCIe 32 GB", 32, 900e9, 112, 14, PCIE_3),
    "t4": _gpu("T4", 16, 320e9, 65, 8.1, PCIE_3),
}
"""By a short name: peak figures of NVIDIA's data sheets ("... Tensor Core GPU Datasheet" of each; A10G: of the AWS
variant), dense, in tensor cores: data sheets since the A100 print twice that, for sparse weights. V100 and T4 have
float16 there and no bfloat16. Link: NVLink, or PCIe where a card has none or a bridge that is bought apart. Not found
with the maker: A10G's operations a second, and of the NVL cards all but their memory."""

# What drivers call them; the first that fits.
_DRIVERS_NAMES = (
    ("h200 nvl", "h200-nvl"),
    ("h200", "h200"),
    ("h100.*pcie", "h100-pcie"),
    ("h100 nvl", "h100-nvl"),
    ("h100", "h100"),
    ("a100 80gb pcie", "a100-pcie"),
    ("a100-pcie", "a100-40-pcie"),
    ("a100.*80", "a100"),
    ("a100", "a100-40"),
    ("l40s", "l40s"),
    (r"l4\b", "l4"),
    (r"a10\b", "a10"),
    ("a10g", "a10g"),
    ("v100-pcie-32", "v100-32-pcie"),
    ("v100-pcie", "v100-pcie"),
    ("v100.*32", "v100-32"),
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
