"""Loading: the model in memory is the planned one, and untrusted files are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import settings_from_mapping
from llmctl.cpu import kernels
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.loading.loader import load
from llmctl.loading.prepare import prepare
from llmctl.plan.memory import module_bytes
from support.tiny import edit_json

Tiny = Callable[[str], Path]
Copy = Callable[..., Path]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_architecture_loads_as_planned(architecture: str, dtype: str, tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models(architecture), load={"dtype": dtype})
    assert not loaded.model.training
    assert loaded.measured.dtype == dtype
    through_kernel = kernels.load() is not None
    assert loaded.measured.attn_implementation == ("llmctl_cpu" if through_kernel else "sdpa")
    assert loaded.measured.device_map == {"": "cpu"}
    planned, found = loaded.plan.memory.weights["cpu"], loaded.measured.device_bytes["cpu"]
    assert planned == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_quantised_models_load_and_generate_on_a_cpu(bits: int, name: str, tiny_models: Tiny) -> None:
    loaded = llmctl.load(
        tiny_models(name), quantization={"bits": bits, "backend": "bitsandbytes"}, generation={"max_new_tokens": 4}
    )
    expected = "bitsandbytes 4-bit nf4, computing in bfloat16" if bits == 4 else "bitsandbytes 8-bit"
    assert loaded.measured.quantization == expected
    assert llmctl.generate(loaded, "hello").token_ids
    planned, found = loaded.plan.memory.weights["cpu"], loaded.measured.device_bytes["cpu"]
    assert planned == pytest.approx(found, rel=0.02)


def test_double_quantisation_is_found_in_the_layers(tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models("llama"), quantization={"bits": 4, "use_double_quant": True})
    assert loaded.measured.quantization == "bitsandbytes 4-bit nf4 double, computing in bfloat16"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral", "gpt2", "mixtral"])
def test_the_planned_modules_are_modules_of_the_loaded_model(name: str, tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models(name))
    modules = dict(loaded.model.named_modules())
    planned = module_bytes(loaded.info, dtype="bfloat16")
    assert [module for module in planned if module not in modules] == []
    covered = {p for p, _ in loaded.model.named_parameters() for m in planned if p.startswith(f"{m}.")}
    assert covered == {p for p, _ in loaded.model.named_parameters()}


def test_an_explicit_map_is_loaded_exactly(tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"device_map": {"model": "cpu", "lm_head": "cpu"}})
    assert set(loaded.measured.device_map.values()) == {"cpu"}


def test_eager_attention_is_used_if_requested(tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"attn_implementation": "eager"})
    assert loaded.measured.attn_implementation == "eager"


def test_flash_attention_on_this_machine_is_an_error_before_anything_is_loaded(tiny_models: Tiny) -> None:
    with pytest.raises(MachineError, match="flash_attention_2 needs an NVIDIA GPU"):
        llmctl.load(tiny_models("llama"), load={"attn_implementation": "flash_attention_2"})


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_incomplete_checkpoint_is_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    rewrite(folder, lambda t: [t.pop(name) for name in sorted(t)[::2]] and None)
    with pytest.raises(ModelError, match=r"has \d+ missing weights, for example"):
        llmctl.load(folder)


def test_unexpected_weights_are_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    rewrite(folder, lambda t: t.update({"model.layers.0.extra.weight": next(iter(t.values())).clone()}))
    with pytest.raises(ModelError, match=r"1 unexpected weights, for example model\.layers\.0\.extra"):
        llmctl.load(folder)


def test_weights_of_another_shape_are_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", intermediate_size=96)
    with pytest.raises(ModelError):
        llmctl.load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"num_key_value_heads": 0}, "ZeroDivisionError"),
        ({"rms_norm_eps": "small"}, "Field 'rms_norm_eps' expected float, got str"),
        ({"rope_parameters": {"rope_type": "nope"}}, "nope"),
    ],
)
@pytest.mark.parametrize("bits", [None, 4])
def test_a_configuration_that_transformers_cannot_build_is_refused_with_the_reason(
    changes: dict[str, Any], reason: str, bits: int | None, tiny_copy: Copy
) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        llmctl.load(folder, quantization={"bits": bits, "cache": False})
    assert reason in refused.value.message


def test_a_fault_of_llmctl_while_loading_stays_visible(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: str, report: object) -> None:
        raise AttributeError("a fault of llmctl")

    monkeypatch.setattr("llmctl.loading.weights.check_keys", broken)
    monkeypatch.setitem(broken.__globals__, "__name__", "llmctl.loading.checks")
    with pytest.raises(AttributeError, match="a fault of llmctl"):
        llmctl.load(tiny_models("llama"))


def test_weights_that_are_not_numbers_are_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    rewrite(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * float("nan")}))
    with pytest.raises(ModelError, match=r"the weight model\.norm\.weight contains NaN or infinity"):
        llmctl.load(folder)


def test_large_but_finite_weights_are_not_mistaken_for_damage(tiny_copy: Copy) -> None:
    import torch

    folder = tiny_copy(dtype="float32")
    largest = torch.full((64,), torch.finfo(torch.float32).max)
    rewrite(folder, lambda t: t.update({"model.norm.weight": largest}))
    loaded = llmctl.load(folder, load={"dtype": "float32"})
    assert torch.equal(loaded.model.model.norm.weight.detach(), largest)


def test_code_of_the_repository_never_runs_without_permission(tiny_copy: Copy, tmp_path: Path) -> None:
    folder, mark = tiny_copy(), tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    edit_json(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    )
    with pytest.raises(UserError, match="needs Python code from its repository"):
        llmctl.load(folder)
    assert not mark.exists()


def test_a_known_architecture_does_not_need_the_code_that_comes_with_it(tiny_copy: Copy, tmp_path: Path) -> None:
    folder, mark = tiny_copy(), tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.EvilModel"})
    assert llmctl.load(folder).measured.model_class == "LlamaForCausalLM"
    assert not mark.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_a_kernel_named_by_the_repository_is_refused(key: str, tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", **{key: "evil/kernel"})
    with pytest.raises(ModelError, match="asks for compiled code from the Hub"):
        llmctl.load(folder)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("named", ["eager", "flash_attention_2"])
def test_an_attention_named_by_the_repository_does_not_override_the_plan(key: str, named: str, tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", **{key: named})
    loaded = llmctl.load(folder, load={"dtype": "float32", "cpu_kernels": False})
    assert loaded.measured.attn_implementation == "sdpa"


def test_the_error_for_an_unknown_architecture_has_a_hint(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", model_type="llama17")
    with pytest.raises(UserError, match="llama17 is not known to this transformers"):
        llmctl.load(folder)


def test_a_model_that_does_not_generate_text_is_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", model_type="vit", architectures=["ViTModel"])
    with pytest.raises(UserError, match="vit is not a model that generates text"):
        llmctl.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True, "model_type": "whisper"},
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["LlamaForSequenceClassification"]},
    ],
)
def test_a_model_for_another_input_or_output_is_refused_before_its_weights_are_read(
    changes: dict[str, Any], tiny_copy: Copy
) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", **changes)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    with pytest.raises(ModelError, match=str(changes["architectures"][0])):
        llmctl.load(folder)


def test_bitsandbytes_cannot_fetch_a_kernel_while_it_is_imported(tmp_path: Path) -> None:
    """Plant a `kernels` package that leaves a mark when it is asked for a kernel."""
    import subprocess
    import sys

    (tmp_path / "kernels.py").write_text(
        f"def get_kernel(*a, **k):\n    open({str(tmp_path / 'asked')!r}, 'w')\n    raise RuntimeError\n"
    )
    code = (
        "from llmctl.quant.bitsandbytes import BACKEND\nBACKEND.import_package()\n"
        "import kernels\nprint(kernels.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "kernels.py" in done.stdout, "afterwards it can be imported again"
    assert not (tmp_path / "asked").exists()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        llmctl.load(tmp_path / "nothing")


def test_preparing_reads_no_weights_and_imports_no_torch(tiny_models: Tiny) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from llmctl.config import settings_from_mapping as s; from llmctl.loading.prepare import prepare;"
        f"p = prepare(s({{'model': {{'id': {str(tiny_models('llama'))!r}}}}}));"
        "print(p.plan.model_kwargs['dtype'], 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bfloat16", "False", "False"]


def test_the_machine_can_be_passed_in(tiny_models: Tiny) -> None:
    from support.machines import LAPTOP

    prepared = prepare(settings_from_mapping({"model": {"id": str(tiny_models("llama"))}}), machine=LAPTOP)
    assert prepared.machine is LAPTOP
    assert "--dtype fp32" in prepared.plan.reason("dtype")


def test_deterministic_algorithms_are_requested_from_torch(tiny_models: Tiny) -> None:
    import torch

    settings = settings_from_mapping({"model": {"id": str(tiny_models("llama"))}, "deterministic": True})
    try:
        load(settings)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


LIMITED = """
import resource, sys
import torch, transformers.models.llama.modeling_llama
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
from llmctl.cli.main import main
sys.exit(main(["load", "--model", sys.argv[1], "--dtype", "fp32", "--overcommit"]))
"""


def test_running_out_of_memory_while_loading_is_explained_with_possible_savings(tiny_copy: Copy) -> None:
    """Load 190 million weights (0.8 GB in float32) with 0.6 GB more than the imports take."""
    import os
    import subprocess
    import sys

    folder = tiny_copy(hidden_size=2048, intermediate_size=8192, num_attention_heads=16, head_dim=128)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 3, done.stderr
    assert "memory ran out while loading" in done.stderr
    assert "--quant 4bit saves " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_load_that_cannot_fit_is_refused_before_it_begins_and_can_be_forced(tiny_models: Tiny) -> None:
    from dataclasses import replace

    from support.machines import LAPTOP

    small = replace(LAPTOP, ram_available_bytes=100_000)
    asked = {"model": {"id": str(tiny_models("llama"))}}
    with pytest.raises(MachineError, match="of RAM are free"):
        load(settings_from_mapping(asked), machine=small)
    forced = settings_from_mapping({**asked, "load": {"overcommit": True}})
    assert load(forced, machine=small).measured.parameters > 0


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_the_users_own_settings_of_the_allocator_stay(
    name: str, tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    from dataclasses import replace

    from llmctl.loading.loader import apply_environment
    from llmctl.plan.make import ALLOCATOR_VARIABLES

    plan = prepare(settings_from_mapping({"model": {"id": str(tiny_models("llama"))}})).plan
    plan = replace(plan, environment={"PYTORCH_ALLOC_CONF": "expandable_segments:True", "LLMCTL_TEST_ONLY": "1"})
    for variable in (*ALLOCATOR_VARIABLES, "LLMCTL_TEST_ONLY"):
        monkeypatch.setenv(variable, "")  # restored after the test
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    apply_environment(plan)
    values = {variable: os.environ.get(variable) for variable in ALLOCATOR_VARIABLES}
    assert values == {**dict.fromkeys(ALLOCATOR_VARIABLES), name: "max_split_size_mb:128"}
    assert os.environ["LLMCTL_TEST_ONLY"] == "1"
    monkeypatch.delenv(name)
    apply_environment(plan)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
