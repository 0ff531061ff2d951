"""NVIDIA's cards: as NVML describes them, and as CUDA shows them to this process."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.machine.detection import read_machine
from llmctl.machine.nvml import read_nvidia_cards, read_nvidia_driver
from llmctl.machine.torch_build import build_in, has_code_for, read_architectures
from llmctl.machine.visible_devices import hides_everything, visible_cards
from support.nvml import GIB, GPU_IS_LOST, NOT_SUPPORTED, FakeCard, FakeNvml, OldNvml

Install = Callable[..., None]

TWO = (
    FakeCard("NVIDIA GeForce RTX 3090", "GPU-8932f937-d72c", (8, 6)),
    FakeCard("NVIDIA GeForce RTX 3090", "GPU-8e11c0de-aaaa", (8, 6)),
)
MIXED = (
    FakeCard("NVIDIA GeForce GTX 1660", "GPU-16600000", (7, 5), memory=6),
    FakeCard("NVIDIA GeForce RTX 4090", "GPU-40900000", (8, 9), memory=24),
)
SLICES = [
    FakeCard("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "MIG-aaaa1111", memory=19.5),
    FakeCard("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "MIG-bbbb2222", memory=4.75),
]
A100 = FakeCard("NVIDIA A100-SXM4-40GB", "GPU-a100", (8, 0), memory=40)
PARTITIONED = FakeCard("NVIDIA A100-SXM4-40GB", "GPU-a101", (8, 0), memory=40, mig=True, slices=SLICES)


def shown() -> list[str]:
    """Return what this process would compute on: names, as CUDA numbers them."""
    gpus = read_machine().gpus
    assert [gpu.device for gpu in gpus] == [f"cuda:{n}" for n in range(len(gpus))]
    return [gpu.name for gpu in gpus]


def uuids(cards: tuple[FakeCard, ...], setting: str) -> list[str]:
    """Return the UUIDs of the cards that CUDA shows with this CUDA_VISIBLE_DEVICES."""
    read = read_nvidia_cards()
    assert read is not None
    assert len(read) == len(cards)
    return [card.uuid for card in visible_cards(read, setting)]


# -- CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("setting", "numbers"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        (" 1 , 0 ", [1, 0]),
        ("0,-1,1", [0]),
        ("0,7,1", [0]),
        ("0,0", []),
        ("1gpu,0", [1, 0]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("GPU-8932f937-d72c", [0]),
        ("GPU-8e1,GPU-893", [1, 0]),
        ("GPU-8", []),
        ("GPU-893,1,GPU-8e1", [0]),
        ("GPU-ffff,GPU-893", []),
        ("GPU-893,GPU-893", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(install: Install, setting: str, numbers: list[int]) -> None:
    install(FakeNvml(*TWO))
    assert uuids(TWO, setting) == [TWO[number].uuid for number in numbers]


@pytest.mark.parametrize("setting", ["", "-1", "-1,0", "NoDevFiles", "void"])
def test_a_list_without_a_valid_device_hides_all(
    install: Install, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    install(FakeNvml(*TWO))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert hides_everything(setting)
    assert read_machine().gpus == ()


def test_a_uuid_chooses_the_card_of_the_machine(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeNvml(*MIXED))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-4090")
    (gpu,) = read_machine().gpus
    assert (gpu.index, gpu.name, gpu.total_bytes) == (0, "NVIDIA GeForce RTX 4090", 24 * GIB)


# -- slices


def test_a_partitioned_card_is_its_first_slice_with_the_memory_of_the_slice(install: Install) -> None:
    install(FakeNvml(PARTITIONED))
    (gpu,) = read_machine().gpus
    assert (gpu.name, gpu.capability) == ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", (8, 0))
    assert gpu.total_bytes == int(19.5 * GIB)
    assert gpu.free_bytes == 19 * GIB


@pytest.mark.parametrize("setting", ["MIG-bbbb2222", "MIG-b", "MIG-bbbb2222,MIG-aaaa1111"])
def test_a_slice_is_chosen_by_its_uuid_and_stands_alone(
    install: Install, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    install(FakeNvml(A100, PARTITIONED))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert shown() == ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]


def test_cuda_shows_no_whole_card_beside_a_slice(install: Install) -> None:
    install(FakeNvml(A100, PARTITIONED))
    assert shown() == ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"]


def test_a_card_in_mig_mode_without_slices_is_no_device(install: Install) -> None:
    install(FakeNvml(A100, FakeCard(A100.name, "GPU-empty", (8, 0), memory=40, mig=True)))
    (gpu,) = read_machine().gpus
    assert gpu.total_bytes == 40 * GIB


def test_a_library_from_before_mig_describes_whole_cards(install: Install) -> None:
    install(OldNvml(*TWO))
    assert len(shown()) == 2


# -- what NVML does not tell


@pytest.mark.parametrize("memory", [-NOT_SUPPORTED, 0], ids=["not supported", "0 bytes"])
def test_a_card_without_memory_of_its_own_uses_the_ram(install: Install, memory: float) -> None:
    install(FakeNvml(FakeCard("NVIDIA GB10", "GPU-10", (12, 1), memory=memory)))
    machine = read_machine()
    (gpu,) = machine.gpus
    assert gpu.shares_ram
    assert gpu.total_bytes == machine.ram_total_bytes
    assert 0 < gpu.free_bytes <= machine.ram_total_bytes


def test_a_card_with_its_own_memory_does_not_share_the_ram(install: Install) -> None:
    install(FakeNvml(*TWO))
    assert [gpu.shares_ram for gpu in read_machine().gpus] == [False, False]


@pytest.mark.parametrize(
    "library",
    [
        None,
        FakeNvml(*TWO, init=9),
        FakeNvml(*TWO, count=15),
        FakeNvml(TWO[0], FakeCard("NVIDIA GPU", "GPU-x", capability=None)),
        FakeNvml(TWO[0], FakeCard("NVIDIA GPU", "GPU-x", memory=-GPU_IS_LOST)),
    ],
    ids=["no library", "init fails", "count fails", "no capability", "memory fails"],
)
def test_an_error_code_is_no_card_of_zero_bytes_but_silence(install: Install, library: FakeNvml | None) -> None:
    install(library)
    assert read_nvidia_cards() is None
    assert read_machine().gpus == ()


def test_versions_that_the_driver_does_not_tell_are_unknown(install: Install) -> None:
    install(FakeNvml(*TWO))  # it lacks both functions
    driver = read_nvidia_driver()
    assert (driver.version, driver.cuda, driver.error) == (None, None, None)


def test_the_error_of_a_driver_is_kept(install: Install) -> None:
    install(FakeNvml(*TWO, init=18))
    assert read_nvidia_driver().error == 18


STUB = r"""
#include <string.h>
struct memory { unsigned long long total, free, used; };
static int card;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.65.06", size); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13010; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = &card; return index; }
int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    strncpy(text, handle == &card ? "NVIDIA L4" : "?", size);
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { strncpy(text, "GPU-4", size); return handle != &card; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    *major = 8; *minor = 9;
    return handle != &card;
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    memory->total = 24152899584ull; memory->free = 20000000000ull;
    return handle != &card;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_compiled_library_is_called_with_the_types_of_nvml(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(STUB)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    install(ctypes.CDLL(str(library)))
    (gpu,) = read_machine().gpus
    assert (gpu.name, gpu.capability) == ("NVIDIA L4", (8, 9))
    assert (gpu.total_bytes, gpu.free_bytes) == (24152899584, 20000000000)
    driver = read_nvidia_driver()
    assert (driver.version, driver.cuda) == ("580.65.06", (13, 1))


# -- the build of torch


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", False),
        ((7, 0), "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", True),
        ((8, 9), "sm_80 sm_90", True),
        ((12, 1), "sm_90 compute_90", True),
        ((12, 1), "sm_120", True),
        ((6, 1), "sm_75 compute_75", False),
        ((7, 0), "", None),
    ],
)
def test_a_card_has_code_if_a_compiled_architecture_runs_on_it(
    capability: tuple[int, int], architectures: str, *, runs: bool | None
) -> None:
    assert has_code_for(capability, architectures.split()) is runs


def test_a_v100_is_marked_if_this_torch_has_no_code_for_it(install: Install) -> None:
    v100 = FakeCard("Tesla V100-SXM2-16GB", "GPU-7", (7, 0), memory=16)
    install(FakeNvml(v100), architectures="sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
    assert [gpu.torch_has_code for gpu in read_machine().gpus] == [False]


def test_a_v100_is_fine_with_a_torch_that_has_code_for_it(install: Install) -> None:
    v100 = FakeCard("Tesla V100-SXM2-16GB", "GPU-7", (7, 0), memory=16)
    install(FakeNvml(v100), architectures="sm_70 sm_75 sm_80")
    assert [gpu.torch_has_code for gpu in read_machine().gpus] == [True]


def test_without_a_list_of_architectures_nothing_is_claimed(install: Install) -> None:
    install(FakeNvml(*TWO))
    assert [gpu.torch_has_code for gpu in read_machine().gpus] == [None, None]


def test_the_list_of_architectures_need_not_follow_a_zero_byte(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    library = b"\0IpcMemHandle(Device device, std::string ipc_hsm_70 sm_75 sm_120\0\0"  # in torch 2.9.1
    (tmp_path / "lib" / "libtorch_python.so").write_bytes(library)
    assert read_architectures(tmp_path) == ("sm_70", "sm_75", "sm_120")


def test_the_installed_torch_is_described_without_importing_it() -> None:
    import torch

    build = build_in(Path(torch.__file__).parent)
    assert build is not None
    assert build.cuda == torch.version.cuda
    listed = (torch._C._cuda_getArchFlags() or "").split() if build.cuda else []
    assert list(read_architectures(build.folder)) == listed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\nxpu: Optional[str] = None\n", ("13.0", None, None)),
        ("cuda = None\nhip = '7.0.51831'\n", (None, "7.0.51831", None)),
        ("cuda = None\nhip = None\nxpu = '20250301'\n", (None, None, "20250301")),
    ],
)
def test_the_device_that_torch_is_built_for_is_in_its_version_file(
    tmp_path: Path, text: str, expected: tuple[str | None, ...]
) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.13.0'\n" + text)
    build = build_in(tmp_path)
    assert build is not None
    assert (build.cuda, build.hip, build.xpu) == expected


def test_cards_that_torch_is_not_built_for_are_idle(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeNvml(*TWO), hip="7.0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    machine = read_machine()
    assert [gpu.name for gpu in machine.idle_gpus] == [TWO[0].name] * 2
