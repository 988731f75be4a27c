"""Which machine this is, and what its maker says of it."""

from pathlib import Path

import pytest

from batchloom.models.machines import MACHINES, gpus_here, machine_named, name_of_this


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-PCIE-40GB", "a100-40-pcie"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("Tesla V100-PCIE-16GB", "v100-pcie"),
        ("Tesla V100-PCIE-32GB", "v100-32-pcie"),
    ],
)
def test_a_machine_is_known_by_its_drivers_name(name: str, key: str) -> None:
    assert machine_named(name) is MACHINES[key]


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA L40", "NVIDIA T400 4GB", "NVIDIA A16", ""])
def test_a_machine_without_figures_is_no_other_one(name: str) -> None:
    assert machine_named(name) is None


def test_gpus_are_those_of_the_driver(tmp_path: Path) -> None:
    assert gpus_here(tmp_path) == []
    for number, model in enumerate(("NVIDIA L4", "NVIDIA H200")):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 11\n")
    assert gpus_here(tmp_path) == ["NVIDIA L4", "NVIDIA H200"]


def test_every_machine_has_a_name_of_its_own_and_figures_of_one_order() -> None:
    assert len({machine.name for machine in MACHINES.values()}) == len(MACHINES)
    for machine in MACHINES.values():
        assert 16e9 <= machine.memory <= 200e9
        assert 0.3e12 <= machine.bandwidth <= 8e12
        assert machine.float_flops < machine.half_flops
        assert 16e9 <= machine.link <= 450e9


@pytest.mark.parametrize(
    ("key", "gigabytes", "gigabytes_a_second", "half", "single"),
    [
        ("h100", 80, 3350, 989, 67), ("h200", 141, 4800, 989, 67), ("a100", 80, 2039, 312, 19.5),
        ("l40s", 48, 864, 362, 91.6), ("l4", 24, 300, 121, 30.3), ("a10g", 24, 600, 70, 35),
        ("v100", 16, 900, 125, 15.7), ("t4", 16, 320, 65, 8.1),
    ],
)  # fmt: skip
def test_figures_are_those_of_data_sheets_without_sparsity(
    key: str, gigabytes: float, gigabytes_a_second: float, half: float, single: float
) -> None:
    machine = MACHINES[key]
    assert machine.memory == gigabytes * 1e9
    assert machine.bandwidth == gigabytes_a_second * 1e9
    assert (machine.half_flops, machine.float_flops) == (half * 1e12, single * 1e12)


def test_a_cpu_has_a_name() -> None:
    assert name_of_this("cpu")
