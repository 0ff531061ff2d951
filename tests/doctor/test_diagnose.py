"""The checks made from hand-written findings, for preset machines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import Config
from llmctl.doctor import Check, Findings, diagnose
from llmctl.doctor.diagnose import is_healthy
from llmctl.doctor.findings import Computer, Disk, HubState, Refusal, Requirements, Trial
from llmctl.hub.environment import Fault
from llmctl.machine.detection import Gpu, Machine
from llmctl.machine.nvml import NvidiaDriver
from llmctl.model.checkpoint import Tensor
from llmctl.model.info import ModelInfo
from support.machines import GIB, H100, LAPTOP, LLAMA3_8B, MAC, T4, V100

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "flash_attn", "psutil")
RANGES = {"torch": ">=2.13", "transformers": "<6,>=5.18", "huggingface_hub": "<3,>=2.0", "kernels": ""}
INSTALLED = {
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "huggingface_hub": "2.4.0",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "flash_attn": "2.8.3",
    "kernels": "0.18.5",
}
CUDA_13 = {
    "version": "2.13.0",
    "cuda": "13.0",
    "threads": 16,
    "cuda_works": True,
    "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"],
}
CPU_BUILD = {"version": "2.13.0+cpu", "cuda": None, "threads": 16}
DRIVER_13 = NvidiaDriver("580.65.06", (13, 0), None, 1)


def findings(
    machine: Machine | None, config: dict[str, Any] | None = None, *, torch: dict[str, Any] | None = None, **more: Any
) -> Findings:
    """Return findings of a machine on which everything works, with the test's changes."""
    facts: dict[str, dict[str, Any]] = {
        "torch": torch or (CUDA_13 if machine and machine.torch_cuda else CPU_BUILD),
        "bitsandbytes": {"library": "cuda" if machine and machine.torch_cuda else "cpu"},
        "transformers": {"kernels": ["0.18.2", "0.19.0"]},
    }
    trials = {name: Trial("imported", facts.get(name, {})) for name in PACKAGES}
    values: dict[str, Any] = {
        "config": Config.model_validate(config or {}),
        "machine": machine,
        "computer": Computer("3.11.9", "Linux", "a processor", usable_cores=16, file_limit=4096),
        "driver": DRIVER_13 if machine and machine.torch_cuda else NvidiaDriver(),
        "trials": trials | more.pop("trials", {}),
        "requirements": Requirements(">=3.11", ("3.11", "3.12"), RANGES, INSTALLED),
        "hub": HubState("https://hub", seconds=0.1),
        "disk": Disk(Path("/cache/hub"), Path("/cache"), 500_000_000_000),
        "source": "acme/model",
        "model": LLAMA3_8B,
    }
    return Findings(**(values | more))


def lines(found: Findings) -> dict[str, Check]:
    return {check.name: check for check in diagnose(found)}


def idle(machine: Machine) -> Machine:
    """Return the same machine with a torch built for the CPU."""
    return replace(machine, gpus=(), idle_gpus=machine.gpus, torch_cuda=None)


def test_a_machine_where_everything_works_has_nothing_broken_and_no_warning() -> None:
    checks = diagnose(findings(H100))
    assert is_healthy(checks)
    assert [check for check in checks if check.status == "warning"] == []
    assert "flash_attention_2" in {check.name: check for check in checks}["plan"].reason


# -- torch, driver, card


def test_a_cpu_build_of_torch_on_a_machine_with_a_gpu_is_a_warning_with_a_fix() -> None:
    line = lines(findings(idle(H100), driver=DRIVER_13))["torch"]
    assert line.status == "warning"
    assert "2.13.0+cpu is built for the CPU only, but NVIDIA H100 80GB HBM3 is in this machine" in line.reason
    assert "models run on the CPU instead" in line.reason
    assert line.fix == 'pip install --force-reinstall "torch==2.13.0"'


def test_a_cpu_build_of_torch_is_broken_if_the_configuration_names_a_gpu() -> None:
    found = findings(idle(H100), {"load": {"device_map": "cuda"}}, driver=DRIVER_13)
    line = lines(found)["torch"]
    assert line.status == "broken"
    assert "needed: load.device_map names cuda" in line.reason
    assert not is_healthy(diagnose(found))


def test_a_cpu_build_of_torch_needs_nothing_if_the_configuration_names_the_cpu() -> None:
    found = findings(idle(H100), {"load": {"device_map": "cpu"}}, driver=DRIVER_13)
    assert lines(found)["torch"].status == "warning"
    assert is_healthy(diagnose(found))


def test_a_card_that_is_visible_only_on_the_bus_is_detected() -> None:
    found = findings(LAPTOP, driver=NvidiaDriver(cards_on_bus=1))
    assert "an NVIDIA card is in this machine" in lines(found)["torch"].reason
    assert "NVIDIA's driver is not usable" in lines(found)["GPU"].reason
    assert "docker run --gpus all" in str(lines(found)["GPU"].fix)


def test_a_driver_older_than_torchs_cuda_is_named_with_the_driver_to_install() -> None:
    old = NvidiaDriver("550.54.14", (12, 4), None, 1)
    facts = CUDA_13 | {"cuda_works": False, "cuda_error": "The NVIDIA driver on your system is too old"}
    found = findings(H100, {"load": {"device_map": "cuda:0"}}, torch=facts, driver=old)
    line = lines(found)["torch"]
    assert line.status == "broken"
    assert "built for CUDA 13.0, but NVIDIA's driver 550.54.14 supports CUDA up to 12.4" in line.reason
    assert str(line.fix).startswith("update NVIDIA's driver to 580 or newer")


def test_an_older_minor_version_of_the_driver_is_fine_if_torch_works() -> None:
    driver = NvidiaDriver("580.65.06", (13, 0), None, 1)
    assert lines(findings(H100, torch=CUDA_13 | {"cuda": "13.2"}, driver=driver))["torch"].status == "ok"


def test_other_cuda_errors_of_torch_are_quoted_and_auto_needs_the_card() -> None:
    facts = CUDA_13 | {"cuda_works": False, "cuda_error": "uncorrectable ECC error encountered"}
    line = lines(findings(H100, torch=facts))["torch"]
    assert line.status == "broken"
    assert "uncorrectable ECC error" in line.reason
    assert "load.device_map is auto, which uses the GPU" in line.reason
    assert lines(findings(H100, {"load": {"device_map": "cpu"}}, torch=facts))["torch"].status == "warning"


def test_a_card_that_torch_has_no_code_for_is_named() -> None:
    line = lines(findings(V100, {"load": {"device_map": "cuda"}}))["torch"]
    assert line.status == "broken"
    assert "no code for Tesla V100-SXM2-32GB (compute capability 7.0)" in line.reason


MI300X = Gpu(0, "AMD Instinct MI300X", (9, 4), 192 * GIB, 190 * GIB, "rocm", torch_has_code=True)
ROCM = {"version": "2.13.0+rocm7.0", "cuda": None, "hip": "7.0.51831", "threads": 16, "gpu_works": True}


def amd(gpu: Gpu = MI300X) -> Machine:
    return replace(H100, gpus=(gpu,), torch_cuda=None)


def test_a_torch_built_for_amd_is_fine_where_it_computes() -> None:
    line = lines(findings(amd(), torch=ROCM))["torch"]
    assert line.status == "ok"
    assert line.reason.endswith("built for ROCm (HIP 7.0.51831), computes on AMD Instinct MI300X")


def test_the_library_of_bitsandbytes_is_named_for_the_gpu_that_it_is_for() -> None:
    facts = {"backend": "ROCm", "library": "rocm"}
    found = findings(amd(), torch=ROCM, trials={"bitsandbytes": Trial("imported", facts)})
    assert "native library for ROCm" in lines(found)["bitsandbytes"].reason


def test_bitsandbytes_without_a_library_for_the_installed_rocm_is_broken_where_it_is_needed() -> None:
    facts = {"backend": "ROCm", "library": None, "library_error": "No compatible ROCm binary found"}
    trials = {"bitsandbytes": Trial("imported", facts)}
    line = lines(findings(amd(), {"quantization": {"bits": "4bit"}}, torch=ROCM, trials=trials))["bitsandbytes"]
    assert line.status == "broken"
    assert "no native library for ROCm (No compatible ROCm binary found)" in line.reason


def test_the_error_of_an_amd_card_is_quoted() -> None:
    facts = ROCM | {"gpu_works": False, "gpu_error": "no permission for /dev/kfd"}
    line = lines(findings(amd(), {"load": {"device_map": "cuda"}}, torch=facts))["torch"]
    assert (line.status, line.fix) == ("broken", "rocminfo")
    assert "no permission for /dev/kfd" in line.reason


def test_an_amd_card_that_torch_has_no_code_for_is_named() -> None:
    line = lines(findings(amd(replace(MI300X, name="AMD Radeon RX 6600", torch_has_code=False)), torch=ROCM))["torch"]
    assert line.status == "broken"
    assert "has no code for AMD Radeon RX 6600" in line.reason


def test_a_torch_for_the_cpu_beside_an_amd_card_is_named() -> None:
    card = replace(MI300X, torch_has_code=None)
    line = lines(findings(replace(LAPTOP, idle_gpus=(card,))))["torch"]
    assert line.status == "warning"
    assert "built for the CPU only, but AMD Instinct MI300X is in this machine" in line.reason
    assert "choose the build for ROCm" in str(line.fix)


def test_a_torch_built_for_intel_without_a_gpu_is_a_warning() -> None:
    facts = {"version": "2.13.0+xpu", "cuda": None, "xpu": "20250301", "gpu_error": "No XPU devices are available."}
    line = lines(findings(LAPTOP, torch=facts))["torch"]
    assert line.status == "warning"
    assert "No XPU devices are available; models run on the CPU instead" in line.reason


@pytest.mark.parametrize(("error", "fix"), [(9, "sudo modprobe nvidia"), (18, "sudo reboot")])
def test_a_driver_that_does_not_answer_is_named(error: int, fix: str) -> None:
    asked = {"load": {"device_map": "cuda"}}
    line = lines(findings(LAPTOP, asked, driver=NvidiaDriver(error=error, cards_on_bus=1)))["GPU"]
    assert (line.status, line.fix) == ("broken", fix)


def test_cards_hidden_by_a_variable_are_named() -> None:
    computer = Computer("3.11.9", "Linux", variables={"CUDA_VISIBLE_DEVICES": ""})
    line = lines(findings(replace(H100, gpus=()), driver=DRIVER_13, computer=computer))["GPU"]
    assert line.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_missing_gpu_number_is_broken() -> None:
    line = lines(findings(H100, {"load": {"device_map": "cuda:3"}}))["GPU"]
    assert line.status == "broken"
    assert "there is no cuda:3 on this machine" in line.reason


def test_a_mac_is_fine_without_any_of_this() -> None:
    assert is_healthy(diagnose(findings(MAC)))


# -- attention, dtype


def test_flash_attention_on_a_t4_is_broken_and_sdpa_is_the_change() -> None:
    line = lines(findings(T4, {"load": {"attn_implementation": "flash_attention_2"}}))["attention"]
    assert (line.status, line.fix) == ("broken", "--attn sdpa")
    assert "needs compute capability 8.0 or more, but Tesla T4 has 7.5" in line.reason


def test_flash_attention_in_float32_is_broken_and_bf16_is_the_change() -> None:
    asked = {"load": {"attn_implementation": "flash_attention_2", "dtype": "float32"}}
    line = lines(findings(H100, asked))["attention"]
    assert (line.status, line.fix) == ("broken", "--dtype bf16")


def test_bf16_on_a_t4_is_a_warning() -> None:
    line = lines(findings(T4, {"load": {"dtype": "bfloat16"}}))["dtype"]
    assert (line.status, line.fix) == ("warning", "--dtype fp16")


def test_a_missing_flash_attn_is_broken_only_if_requested() -> None:
    without = findings(replace(H100, packages={"torch": "2.13.0", "bitsandbytes": "0.50.2"}))
    without = replace(without, trials={n: t for n, t in without.trials.items() if n != "flash_attn"})
    assert lines(without)["flash-attn"].status == "skipped"
    asked = replace(without, config=Config.model_validate({"load": {"attn_implementation": "flash_attention_2"}}))
    line = lines(asked)["flash-attn"]
    assert (line.status, line.fix) == ("broken", "pip install --no-build-isolation flash-attn")


def test_a_broken_flash_attn_that_auto_would_take_is_broken_and_with_sdpa_a_warning() -> None:
    broken = {"flash_attn": Trial("failed", error="ImportError: undefined symbol: x", foreign_symbols=True)}
    line = lines(findings(H100, trials=broken))["flash-attn"]
    assert line.status == "broken"
    assert "load.attn_implementation is auto, which selects it here" in line.reason
    with_sdpa = findings(H100, {"load": {"attn_implementation": "sdpa"}}, trials=broken)
    assert lines(with_sdpa)["flash-attn"].status == "warning"
    assert lines(findings(T4, trials=broken))["flash-attn"].status == "warning"


# -- packages


def test_a_bitsandbytes_without_a_library_for_this_cuda_is_broken_where_weights_are_quantised() -> None:
    trial = Trial("imported", {"library": None, "library_error": "No compatible CUDA binary found"})
    found = findings(H100, {"quantization": {"bits": 4}}, trials={"bitsandbytes": trial})
    line = lines(found)["bitsandbytes"]
    assert line.status == "broken"
    assert "no native library for CUDA 13.0 (No compatible CUDA binary found)" in line.reason
    assert lines(findings(H100, trials={"bitsandbytes": trial}))["bitsandbytes"].status == "warning"


@pytest.mark.parametrize(
    ("version", "status"),
    [("5.17.1", "broken"), ("5.18.0", "ok"), ("5.24.3", "ok"), ("5.25.0", "warning"), ("6.0.0", "broken")],
)
def test_transformers_outside_its_range_is_broken_and_beyond_the_tested_a_warning(version: str, status: str) -> None:
    wanted = Requirements(">=3.11", ("3.11",), RANGES, INSTALLED | {"transformers": version})
    line = lines(findings(H100, requirements=wanted))["transformers"]
    assert line.status == status
    if status == "broken":
        assert line.fix == 'pip install "transformers>=5.18,<6"'


def test_the_line_of_the_cpu_kernels_states_the_consequence_of_their_absence() -> None:
    why = "they were not compiled when llmctl was installed: no C++ compiler was found, or it failed"

    def line(machine: Machine, outcome: Any = "imported", **facts: Any) -> Check:
        trial = Trial(outcome, facts, error="" if outcome == "imported" else "SIGILL")
        return lines(findings(machine, trials={"llmctl.cpu.kernels": trial}))["CPU kernels"]

    assert (line(LAPTOP, isa="avx2").status, line(LAPTOP, isa="avx2").reason) == ("ok", "in use, for avx2")
    assert "without vector instructions" in line(LAPTOP, isa="portable").reason
    lost = line(LAPTOP, isa=None, missing=why)
    without = "4 and 8 bits use torch's packed kernels and cannot be cached or saved"
    assert (lost.status, lost.reason) == ("warning", f"{why}; models on the CPU are slower: {without}")
    assert "C++ compiler" in str(lost.fix)
    assert line(H100, isa=None, missing=why).status == "skipped"
    assert "fails (SIGILL)" in line(LAPTOP, "crashed").reason


def test_a_kernels_package_that_transformers_does_not_support_is_a_warning() -> None:
    wanted = Requirements(">=3.11", ("3.11",), RANGES, INSTALLED | {"kernels": "0.19.0"})
    line = lines(findings(H100, requirements=wanted))["kernels"]
    assert (line.status, line.fix) == ("warning", 'pip install "kernels>=0.18.2,<0.19.0"')
    assert "hides it from bitsandbytes" in lines(findings(H100))["kernels"].reason


def test_an_old_python_is_broken_and_an_untested_one_a_warning() -> None:
    assert lines(findings(H100, computer=Computer("3.10.1", "Linux")))["python"].status == "broken"
    assert lines(findings(H100, computer=Computer("3.15.0", "Linux")))["python"].status == "warning"


# -- the Hub and the disk


def test_a_fault_of_the_hub_is_broken_only_if_a_model_must_be_downloaded() -> None:
    away = HubState("https://hub", unreachable=Refusal("unreachable", "cannot reach hub", "is it up?"))
    assert lines(findings(H100, hub=away))["Hub"].status == "warning"
    wanted = replace(away, wanted="acme/model")
    assert lines(findings(H100, hub=wanted, model=None))["Hub"].status == "broken"


def test_a_model_that_does_not_fit_on_the_disk_is_broken() -> None:
    hub = HubState("https://hub", seconds=0.1, wanted="acme/model", download_bytes=600_000_000_000)
    line = lines(findings(H100, hub=hub, model=None))["cache folder"]
    assert line.status == "broken"
    assert "acme/model takes 600 GB" in line.reason


def test_a_fine_grained_token_that_may_not_read_gated_models_is_a_warning() -> None:
    hub = HubState("https://hub", seconds=0.1, token_source="HF_TOKEN", role="fineGrained", reads_gated=False)
    line = lines(findings(H100, hub=hub))["token"]
    assert line.status == "warning"
    assert "Read access to contents of all public gated repos" in str(line.fix)


# -- this computer


def test_an_address_space_smaller_than_the_model_is_broken() -> None:
    computer = Computer("3.11.9", "Linux", address_limit_bytes=8_000_000_000)
    line = lines(findings(H100, computer=computer))["address space"]
    assert (line.status, line.fix) == ("broken", "ulimit -v unlimited")


def test_an_import_that_fails_for_lack_of_address_space_is_not_fixed_by_reinstalling() -> None:
    computer = Computer("3.11.9", "Linux", address_limit_bytes=600_000_000)
    failed = {"torch": Trial("failed", error="MemoryError: ")}
    assert lines(findings(LAPTOP, trials=failed, computer=computer))["torch"].fix == "ulimit -v unlimited"


def test_a_small_container_and_an_old_processor_are_warnings() -> None:
    computer = Computer("3.11.9", "Linux", container_limit_bytes=2_000_000_000)
    found = lines(findings(replace(LAPTOP, cpu_features=frozenset()), computer=computer))
    assert "2 GB" in found["container limit"].reason
    assert "without AVX2" in found["CPU"].reason


@pytest.mark.parametrize(
    ("threads", "fix"), [(64, "export OMP_NUM_THREADS=4"), (1, "export OMP_NUM_THREADS=4"), (4, None)]
)
def test_threads_are_compared_with_the_cores_that_may_be_used(threads: int, fix: str | None) -> None:
    computer = Computer("3.11.9", "Linux", usable_cores=4)
    assert lines(findings(H100, torch=CUDA_13 | {"threads": threads}, computer=computer))["threads"].fix == fix


def test_a_broken_line_always_has_a_fix() -> None:
    asked = {"load": {"device_map": "cuda", "attn_implementation": "flash_attention_2"}, "quantization": {"bits": 4}}
    broken = {name: Trial("crashed", error="SIGSEGV") for name in PACKAGES}
    checks = diagnose(findings(LAPTOP, asked, trials=broken, hub=HubState(failure="SIGSEGV")))
    wrong = [check for check in checks if check.status == "broken"]
    assert len(wrong) >= 5
    assert [check.name for check in wrong if not check.fix] == []


# -- the environment


def test_a_variable_with_which_nothing_can_be_imported_is_broken_whatever_is_configured() -> None:
    faulty = Fault("HF_HUB_DOWNLOAD_TIMEOUT", "is 'abc'", "unset it")
    [line] = [c for c in diagnose(findings(LAPTOP, import_faults=(faulty,))) if c.name == "environment"]
    assert (line.status, line.fix) == ("broken", "unset it")
    assert line.reason.startswith("HF_HUB_DOWNLOAD_TIMEOUT is 'abc'")


@pytest.mark.parametrize(("wanted", "status"), [(None, "warning"), ("acme/model", "broken")])
def test_a_faulty_proxy_is_broken_only_if_a_model_has_to_be_downloaded(wanted: str | None, status: str) -> None:
    faulty = Fault("ALL_PROXY", "is a SOCKS proxy, which needs the package socksio", "pip install socksio", True)
    found = findings(LAPTOP, connection_faults=(faulty,), hub=HubState("https://hub", seconds=0.1, wanted=wanted))
    line = lines(found)["environment"]
    assert (line.status, line.fix) == (status, "pip install socksio")


def test_a_fault_that_the_hub_check_names_already_is_not_repeated() -> None:
    faulty = Fault("HF_ENDPOINT", "is 'x': it must begin with http:// or https://", "unset it")
    hub = HubState("x", unreachable=Refusal("user", f"HF_ENDPOINT {faulty.problem}", "unset it"))
    found = lines(findings(LAPTOP, connection_faults=(faulty,), hub=hub))
    assert "environment" not in found
    assert found["Hub"].fix == "unset it"


def test_variables_and_folders_that_only_cost_something_are_warnings() -> None:
    found = findings(
        H100,
        doubts=(Fault("REQUESTS_CA_BUNDLE", "is set, and nothing reads it", "export SSL_CERT_FILE=…"),),
        locked_folders=((Path("/state"), "Permission denied"),),
        disk=Disk(Path("/cache/hub"), Path("/cache"), 500_000_000_000, has_links=False),
    )
    checks = lines(found)
    assert is_healthy(diagnose(found))
    assert checks["environment"].status == "warning"
    assert "/state: Permission denied" in checks["llmctl's folders"].reason
    assert "LLMCTL_HOME" in str(checks["llmctl's folders"].fix)
    assert "without symbolic links" in checks["cache folder"].reason


# -- pre-quantised checkpoints


def stored_in(method: str, **settings: Any) -> ModelInfo:
    config = {**LLAMA3_8B.config, "quantization_config": {"quant_method": method, **settings}}
    return replace(LLAMA3_8B, config=config, tensors=LLAMA3_8B.tensors[:1])


def test_a_format_that_loads_shows_what_becomes_of_its_weights() -> None:
    checks = lines(findings(LAPTOP, model=stored_in("fp8")))
    assert (checks["format"].status, checks["plan"].status) == ("ok", "ok")
    assert "unpacked to bfloat16" in checks["format"].reason
    assert "format" not in lines(findings(LAPTOP)), "an unquantised model has none"


def test_a_format_that_nothing_loads_breaks_the_plan() -> None:
    found = findings(LAPTOP, model=stored_in("hqq"))
    checks = lines(found)
    assert (checks["plan"].status, is_healthy(diagnose(found))) == ("broken", False)
    assert "format" not in checks


def test_the_packages_of_a_format_are_checked_one_by_one() -> None:
    with_optimum = replace(LAPTOP, packages={**LAPTOP.packages, "optimum": "2.3.0"})
    checks = lines(findings(with_optimum, model=stored_in("gptq", bits=4)))
    assert (checks["optimum"].status, checks["gptqmodel"].status) == ("ok", "broken")
    both = replace(with_optimum, packages={**with_optimum.packages, "gptqmodel": "7.7.0"})
    crashed = {"gptqmodel": Trial("failed", error="ImportError: no such symbol")}
    checks = lines(findings(both, model=stored_in("gptq", bits=4), trials=crashed))
    assert checks["gptqmodel"].status == "broken"
    assert "no such symbol" in checks["gptqmodel"].reason
    checks = lines(findings(both, model=stored_in("gptq", bits=4)))
    assert (checks["gptqmodel"].status, checks["format"].status) == ("ok", "ok")


# -- images


@pytest.mark.parametrize(
    ("images", "words"),
    [("auto", "loaded with the first image"), ("always", "loaded at the start"), ("never", "turned off (load.images)")],
)
def test_the_line_of_the_images_says_when_a_vision_tower_is_loaded(images: str, words: str) -> None:
    tower = Tensor("model.visual.patch_embed.weight", "BF16", (64, 64))
    config = {**LLAMA3_8B.config, "vision_config": {}}
    model = replace(LLAMA3_8B, config=config, left_out=(tower,))
    found = findings(
        replace(H100, packages={**H100.packages, "pillow": "12.0"}), {"load": {"images": images}}, model=model
    )
    line = lines(found)["images"]
    assert line.status == ("skipped" if images == "never" else "ok")
    assert "model.visual: 8.19 kB on disk" in line.reason
    assert words in line.reason


def test_a_model_that_takes_images_without_pillow_is_a_warning_with_a_fix() -> None:
    model = replace(
        LLAMA3_8B, config={**LLAMA3_8B.config, "vision_config": {}}, left_out=(Tensor("visual.a.weight", "BF16", (8,)),)
    )
    line = lines(findings(H100, model=model))["images"]
    assert (line.status, line.fix) == ("warning", "pip install 'llmctl-hf[images]'")
