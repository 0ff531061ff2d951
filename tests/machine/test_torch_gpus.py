"""The GPUs that a made-up torch names: AMD's, Intel's, and NVIDIA's where NVML does not tell them."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.config.layers import settings_from_mapping
from llmctl.machine import torch_gpus
from llmctl.machine.detection import read_machine
from llmctl.machine.nvml import driver_is_present
from llmctl.machine.torch_gpus import may_find_gpus
from llmctl.plan.devices import device_choices
from support.nvml import GIB, FakeCard, FakeNvml

Install = Callable[..., None]
PlantTorch = Callable[[str], Path]

# A torch whose devices are listed in DEVICES; each question to it is noted in a file beside it.
TORCH = """
import pathlib, types
with pathlib.Path(__file__).with_name("asked").open("a") as log:
    log.write("asked ")
version = types.SimpleNamespace(cuda={cuda!r}, hip={hip!r})
DEVICES = {devices!r}

class Module:
    def __init__(self, there): self.there = there
    def is_available(self): return bool(self.there and DEVICES)
    def device_count(self): return len(DEVICES)
    def get_arch_list(self): return {architectures!r}.split()
    def get_device_properties(self, n):
        return types.SimpleNamespace(**{{k: v for k, v in DEVICES[n].items() if k != "free"}})
    def mem_get_info(self, n):
        free = DEVICES[n]["free"]
        if isinstance(free, str): raise RuntimeError(free)
        return free, DEVICES[n]["total_memory"]

cuda, xpu = Module({cuda!r} or {hip!r}), Module({xpu!r})
"""
MI300X = {
    "name": "AMD Instinct MI300X", "major": 9, "minor": 4, "total_memory": 192 * GIB, "free": 190 * GIB,
    "is_integrated": 0, "gcnArchName": "gfx942:sramecc+:xnack-",
}  # fmt: skip
RX_6600 = {
    "name": "AMD Radeon RX 6600", "major": 10, "minor": 3, "total_memory": 8 * GIB, "free": 7 * GIB,
    "is_integrated": 0, "gcnArchName": "gfx1032",
}  # fmt: skip
B580 = {
    "name": "Intel(R) Arc(TM) B580 Graphics", "total_memory": 12 * GIB, "free": 11 * GIB, "is_integrated_gpu": False,
}  # fmt: skip
RTX_4090 = {
    "name": "NVIDIA GeForce RTX 4090", "major": 8, "minor": 9, "total_memory": 24 * GIB, "free": 23 * GIB,
    "is_integrated": 0,
}  # fmt: skip
GTX_1660 = RTX_4090 | {"name": "NVIDIA GeForce GTX 1660", "major": 7, "minor": 5, "total_memory": 6 * GIB, "free": GIB}
UNKNOWN_FREE = "The device (Intel(R) Graphics [0x64a0]) doesn't support querying the available free memory."


def torch_with(
    *devices: dict[str, object],
    cuda: str | None = None,
    hip: str | None = None,
    xpu: str | None = None,
    architectures: str = "",
) -> str:
    return TORCH.format(devices=devices, cuda=cuda, hip=hip, xpu=xpu, architectures=architectures)


def times_asked(folder: Path) -> int:
    file = folder / "asked"
    return len(file.read_text().split()) if file.exists() else 0


# -- AMD and Intel


def test_an_amd_card_is_found_through_torch_and_is_called_cuda_there(install: Install, plant_torch: PlantTorch) -> None:
    install(hip="7.0")
    plant_torch(torch_with(MI300X, hip="7.0", architectures="gfx90a gfx942"))
    (gpu,) = read_machine().gpus
    assert (gpu.kind, gpu.device, gpu.name) == ("rocm", "cuda:0", "AMD Instinct MI300X")
    assert (gpu.total_bytes, gpu.free_bytes) == (192 * GIB, 190 * GIB)
    assert gpu.torch_has_code


def test_an_amd_card_that_this_torch_has_no_code_for_is_marked(install: Install, plant_torch: PlantTorch) -> None:
    install(hip="7.0")
    plant_torch(torch_with(MI300X, RX_6600, hip="7.0", architectures="gfx942 gfx1030"))
    assert [gpu.torch_has_code for gpu in read_machine().gpus] == [True, False]


def test_generic_code_of_rocm_is_not_judged(install: Install, plant_torch: PlantTorch) -> None:
    install(hip="7.0")
    plant_torch(torch_with(RX_6600, hip="7.0", architectures="gfx942 gfx10-3-generic"))
    assert [gpu.torch_has_code for gpu in read_machine().gpus] == [None]


@pytest.mark.parametrize("name", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
@pytest.mark.parametrize("setting", ["", "-1"])
def test_amd_cards_that_a_variable_hides_are_not_asked_for(
    install: Install, plant_torch: PlantTorch, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    install(hip="7.0")
    folder = plant_torch(torch_with(MI300X, hip="7.0"))
    monkeypatch.setenv(name, setting)
    assert read_machine().gpus == ()
    assert times_asked(folder) == 0


def test_an_intel_card_is_found_through_torch(install: Install, plant_torch: PlantTorch) -> None:
    install(xpu="20250301")
    plant_torch(torch_with(B580, xpu="20250301"))
    (gpu,) = read_machine().gpus
    assert (gpu.kind, gpu.device, gpu.name) == ("xpu", "xpu:0", "Intel(R) Arc(TM) B580 Graphics")
    assert (gpu.total_bytes, gpu.free_bytes, gpu.shares_ram) == (12 * GIB, 11 * GIB, False)


def test_an_intel_gpu_that_does_not_tell_its_free_memory_has_the_ram_that_is_free(
    install: Install, plant_torch: PlantTorch
) -> None:
    install(xpu="20250301")
    integrated = B580 | {"is_integrated_gpu": True, "free": UNKNOWN_FREE, "total_memory": 2**50}
    plant_torch(torch_with(integrated, xpu="20250301"))
    machine = read_machine()
    assert machine.gpus[0].shares_ram
    assert 0 < machine.gpus[0].free_bytes <= machine.ram_available_bytes


@pytest.mark.parametrize("value", ["xpu", "xpu:1", {"": "xpu:0"}])
def test_the_configuration_takes_intels_devices(value: object) -> None:
    assert settings_from_mapping({"load": {"device_map": value}}).config.load.device_map == value


# -- NVIDIA


def test_torch_is_asked_where_nvml_is_missing_but_a_driver_is_there(install: Install, plant_torch: PlantTorch) -> None:
    install(None, driver=True)
    plant_torch(torch_with(RTX_4090, cuda="13.0", architectures="sm_86 sm_90"))
    (gpu,) = read_machine().gpus
    assert (gpu.kind, gpu.name, gpu.capability) == ("cuda", "NVIDIA GeForce RTX 4090", (8, 9))
    assert (gpu.free_bytes, gpu.torch_has_code) == (23 * GIB, True)


def test_torch_is_not_asked_on_a_computer_without_a_driver(install: Install, plant_torch: PlantTorch) -> None:
    install(None)
    folder = plant_torch(torch_with(RTX_4090, cuda="13.0"))
    assert read_machine().gpus == ()
    assert times_asked(folder) == 0


def test_torch_is_asked_for_the_order_of_different_cards(install: Install, plant_torch: PlantTorch) -> None:
    on_the_bus = (FakeCard(str(GTX_1660["name"]), "GPU-1", (7, 5)), FakeCard(str(RTX_4090["name"]), "GPU-2", (8, 9)))
    install(FakeNvml(*on_the_bus))
    plant_torch(torch_with(RTX_4090, GTX_1660, cuda="13.0"))
    assert [gpu.capability for gpu in read_machine().gpus] == [(8, 9), (7, 5)]


@pytest.mark.parametrize(
    ("name", "value", "capabilities"),
    [("CUDA_DEVICE_ORDER", "PCI_BUS_ID", [(7, 5), (8, 9)]), ("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2", [(7, 5), (8, 9)])],
)
def test_an_order_that_the_environment_sets_needs_no_question(
    install: Install,
    plant_torch: PlantTorch,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    capabilities: list[tuple[int, int]],
) -> None:
    install(FakeNvml(FakeCard("GTX 1660", "GPU-1", (7, 5)), FakeCard("RTX 4090", "GPU-2", (8, 9))))
    folder = plant_torch(torch_with(RTX_4090, cuda="13.0"))
    monkeypatch.setenv(name, value)
    assert [gpu.capability for gpu in read_machine().gpus] == capabilities
    assert times_asked(folder) == 0


def test_torch_is_asked_for_slices_in_the_form_of_old_drivers(
    install: Install, plant_torch: PlantTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FakeNvml(FakeCard("NVIDIA A100-SXM4-40GB", "GPU-1", (8, 0), mig=True)))
    plant_torch(torch_with(RTX_4090 | {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"}, cuda="11.8"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-1/7/0")
    assert [gpu.name for gpu in read_machine().gpus] == ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]


def test_cards_of_one_name_with_different_memory_are_different(install: Install, plant_torch: PlantTorch) -> None:
    install(FakeNvml(FakeCard("RTX 3080", "GPU-1", memory=10), FakeCard("RTX 3080", "GPU-2", memory=12)))
    folder = plant_torch(torch_with(RTX_4090, cuda="13.0"))
    read_machine()
    assert times_asked(folder) == 1


def test_cards_of_one_model_need_no_question(install: Install, plant_torch: PlantTorch) -> None:
    install(FakeNvml(FakeCard("RTX 3090", "GPU-1"), FakeCard("RTX 3090", "GPU-2")))
    folder = plant_torch(torch_with(RTX_4090, cuda="13.0"))
    assert len(read_machine().gpus) == 2
    assert times_asked(folder) == 0


def test_a_jetson_uses_the_ram_that_a_process_can_take(install: Install, plant_torch: PlantTorch) -> None:
    install(None, driver=True)
    orin = RTX_4090 | {"name": "Orin", "minor": 7, "is_integrated": 1, "total_memory": 2**50, "free": 1}
    plant_torch(torch_with(orin, cuda="13.0"))
    machine = read_machine()
    assert machine.gpus[0].shares_ram
    assert machine.gpus[0].free_bytes > 1, "CUDA counts the pages of files as used"


def test_a_full_card_has_no_free_memory(install: Install, plant_torch: PlantTorch) -> None:
    install(None, driver=True)
    plant_torch(torch_with(RTX_4090 | {"free": "CUDA error: out of memory"}, cuda="13.0"))
    assert [gpu.free_bytes for gpu in read_machine().gpus] == [0]


# -- when to ask


@pytest.mark.parametrize(
    ("file", "present"),
    [
        ("dev/nvidia0", True),
        ("dev/nvhost-gpu", True),
        ("usr/lib/wsl/lib/libcuda.so.1", True),
        ("proc/driver/nvidia/version", False),
        ("dev/dxg", False),
        ("dev/nvram", False),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_the_files_that_cuda_opens_show_a_driver(tmp_path: Path, file: str, *, present: bool) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert driver_is_present(tmp_path) is present


@pytest.mark.parametrize(("file", "amd", "intel"), [("kfd", True, False), ("dri", False, True), ("dxg", True, True)])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these files")
def test_without_device_files_no_gpu_is_sought(tmp_path: Path, file: str, *, amd: bool, intel: bool) -> None:
    assert not may_find_gpus(is_amd=True, root=tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / file).touch()
    assert may_find_gpus(is_amd=True, root=tmp_path) is amd
    assert may_find_gpus(is_amd=False, root=tmp_path) is intel


# -- the question


def test_torch_is_asked_once_for_each_environment(
    install: Install, plant_torch: PlantTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(hip="7.0")
    folder = plant_torch(torch_with(MI300X, hip="7.0"))
    assert read_machine().gpus == read_machine().gpus
    assert times_asked(folder) == 1
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    read_machine()
    assert times_asked(folder) == 2


def test_a_torch_that_hangs_is_ended_at_the_limit(plant_torch: PlantTorch) -> None:
    plant_torch("import time\ntime.sleep(60)\n")
    began = time.monotonic()
    assert torch_gpus.torch_gpus(limit_seconds=1) is None
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("code", ["raise ImportError('libamdhip64.so')", "import os; os.abort()", "print('{}')"])
def test_a_torch_that_fails_gives_no_answer(install: Install, plant_torch: PlantTorch, code: str) -> None:
    install(hip="7.0")
    plant_torch(code)
    assert torch_gpus.torch_gpus(limit_seconds=30) is None
    machine = read_machine()
    assert machine.gpus == ()
    (choice,) = device_choices(settings_from_mapping({}).config, machine, quantizes=False)
    assert choice.devices == ("cpu",)
    assert choice.reason.startswith("torch was asked for its GPUs and did not answer")


def test_a_torch_without_gpus_is_not_silent(install: Install, plant_torch: PlantTorch) -> None:
    install(hip="7.0")
    plant_torch(torch_with(hip="7.0"))
    assert not read_machine().torch_is_silent


def test_what_a_torch_prints_is_no_part_of_its_answer(install: Install, plant_torch: PlantTorch) -> None:
    install(hip="7.0")
    plant_torch("print('{\"gpus\": []}')\n" + torch_with(MI300X, hip="7.0"))
    assert len(read_machine().gpus) == 1


def test_the_installed_torch_answers(install: Install) -> None:
    import torch

    install(None, driver=True)
    seen = torch_gpus.torch_gpus()
    assert seen is not None
    assert len(seen) == torch.cuda.device_count() + torch.xpu.device_count()
