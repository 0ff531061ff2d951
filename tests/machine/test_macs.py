"""Apple's computers: the chip, the version of macOS, and the part of the memory that the GPU can use."""

from collections.abc import Callable

import pytest

from llmctl.machine import apple
from llmctl.machine.apple import GIB, Mac, read_mac, working_set_bytes
from llmctl.machine.detection import read_machine
from llmctl.platform_support import read_sysctl

Install = Callable[..., None]


@pytest.fixture
def as_mac(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let this computer look like a Mac with these values of sysctl."""

    def changed(architecture: str = "arm64", **values: bytes) -> None:
        monkeypatch.setattr(apple.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(apple.platform, "machine", lambda: architecture)
        monkeypatch.setattr(apple, "read_sysctl", lambda name: values.get(name.rpartition(".")[2], b""))

    return changed


def test_a_mac_is_its_chip_its_version_and_a_share_of_its_memory(as_mac: Callable[..., None]) -> None:
    as_mac(brand_string=b"Apple M3 Max\0", osproductversion=b"14.5.1\0", wired_limit_mb=b"\0\0\0\0")
    assert read_mac(ram_bytes=36 * GIB) == Mac("Apple M3 Max", (14, 5), 27 * GIB)


@pytest.mark.parametrize(("ram", "usable"), [(8, 5.33), (16, 10.67), (32, 21.33), (36, 27), (64, 48), (128, 96)])
def test_metal_recommends_two_thirds_and_three_quarters_of_a_large_memory(ram: int, usable: float) -> None:
    assert working_set_bytes(ram * GIB) == pytest.approx(usable * GIB, rel=0.001)


def test_a_limit_that_the_owner_has_set_holds(as_mac: Callable[..., None]) -> None:
    as_mac(brand_string=b"Apple M1 Max\0", osproductversion=b"15.0\0", wired_limit_mb=(57344).to_bytes(4, "little"))
    mac = read_mac(ram_bytes=64 * GIB)
    assert mac is not None
    assert mac.working_set_bytes == 56 * GIB


def test_a_mac_with_a_processor_of_intel_has_no_gpu_for_torch(as_mac: Callable[..., None]) -> None:
    as_mac("x86_64", brand_string=b"Intel(R) Core(TM) i7\0", osproductversion=b"13.6\0")
    assert read_mac(ram_bytes=16 * GIB) is None


def test_the_gpu_of_a_mac_has_less_than_its_ram(as_mac: Callable[..., None], install: Install) -> None:
    install(None)
    as_mac(brand_string=b"Apple M1\0", osproductversion=b"13.6\0")
    machine = read_machine()
    (gpu,) = machine.gpus
    assert (gpu.kind, gpu.device, gpu.name, gpu.shares_ram) == ("mps", "mps", "Apple M1", True)
    assert gpu.total_bytes == working_set_bytes(machine.ram_total_bytes) < machine.ram_total_bytes
    assert gpu.free_bytes <= min(gpu.total_bytes, machine.ram_available_bytes)
    assert machine.macos == (13, 6)


def test_other_systems_have_no_sysctl_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert read_sysctl("machdep.cpu.brand_string") == b""
