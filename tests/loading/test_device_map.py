"""The devices of a model that several devices share: every tensor has one. The GPUs are described, not here."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from llmctl.config import settings_from_mapping
from llmctl.errors import MachineError, UserError
from llmctl.generation.engine.capacity import tokens_that_fit
from llmctl.loading.checks import check_architecture
from llmctl.loading.device_map import layer_shares, with_complete_device_map
from llmctl.loading.prepare import Prepared, prepare
from llmctl.loading.weights import empty_model
from llmctl.model.info import read_model_info
from llmctl.plan.memory import module_bytes
from support.composite import write_composite
from support.machines import GIB, gpu_machine
from support.tiny import write_model

COMPOSITES = ("composite gemma3", "composite llava", "composite mistral3", "composite qwen3_vl", "composite llama4")
TEXT_MODELS = ("llama", "qwen3", "gemma3", "mixtral", "gpt2", "phi3", "gpt_oss")
Folders = Callable[[str], Path]
TWO_SMALL = gpu_machine(("NVIDIA GeForce RTX 3090", (8, 6), 24), ("NVIDIA GeForce RTX 3090", (8, 6), 24))


def prepared_for(folder: Path, **load: Any) -> Prepared:
    """The inputs for a machine on whose first GPU half of the model may be, in forward order."""
    half = sum(module_bytes(read_model_info(folder), dtype="bfloat16").values()) // 2
    spread = {"device_map": "sequential", "dtype": "bfloat16", "max_memory": {0: half}}
    settings = settings_from_mapping({"model": {"id": str(folder)}, "load": {**spread, **load}})
    return prepare(settings, machine=TWO_SMALL, offline=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A tiny model, made once: `folders("composite gemma3")`."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        write = write_composite if name.startswith("composite") else write_model
        folder = root / name
        return folder if folder.exists() else write(folder, name.removeprefix("composite "))

    return make


@pytest.mark.parametrize("name", [*TEXT_MODELS, *COMPOSITES])
def test_every_weight_and_buffer_has_a_gpu(folders: Folders, name: str) -> None:
    prepared = prepared_for(folders(name))
    model = empty_model(prepared)
    planned = dict(prepared.plan.model_kwargs["device_map"])
    complete = with_complete_device_map(prepared, model).plan.model_kwargs["device_map"]
    assert set(complete.values()) == {0, 1}
    modules = dict(model.named_modules())
    for tensor, _ in chain(model.named_parameters(remove_duplicate=False), model.named_buffers()):
        assert [one for one in complete if tensor == one or tensor.startswith(f"{one}.")], tensor
    added = complete.keys() - planned.keys()
    parameters = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert not added & parameters, "the plan names every module with weights of its own as transformers does"
    assert planned.items() <= complete.items()
    assert all(isinstance(modules[one], nn.Module) for one in added)
    assert any("rotary" in one for one in complete) == any("rotary" in one for one in modules)


def test_the_plan_names_the_modules_of_gemma_3_as_transformers_does(folders: Folders) -> None:
    prepared = prepared_for(folders("composite gemma3"))
    modules = dict(empty_model(prepared).named_modules())
    planned = module_bytes(prepared.info, dtype="bfloat16")
    assert "model.language_model.layers.0" in planned
    assert planned.keys() <= modules.keys()


def test_tied_weights_share_a_gpu_in_the_loaded_map(folders: Folders) -> None:
    prepared = prepared_for(folders("gemma3"))
    complete = with_complete_device_map(prepared, empty_model(prepared)).plan.model_kwargs["device_map"]
    assert complete["lm_head"] == complete["model.embed_tokens"] == 0


def test_a_device_map_with_a_module_that_the_model_lacks_is_refused(folders: Folders) -> None:
    prepared = prepared_for(folders("llama"), device_map={"model": 0, "lm_head": 1, "model.decoder": 1})
    with pytest.raises(UserError, match=r"names model\.decoder, which LlamaForCausalLM does not have"):
        with_complete_device_map(prepared, empty_model(prepared))


# -- the engine on several devices


def test_the_share_of_a_gpu_in_the_cache_is_its_share_of_the_layers() -> None:
    class Model(nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            places = ("cpu", "meta", "meta", "meta")
            self.layers = nn.ModuleList(nn.Linear(2, 2, device=place) for place in places)

        def get_decoder(self) -> "Model":
            return self

    assert layer_shares(Model()) == {torch.device("cpu"): 0.25, torch.device("meta"): 0.75}


def test_the_pool_fits_on_the_gpu_that_is_fullest_for_its_layers() -> None:
    sizes = {"token_bytes": 1000, "state_bytes": 0, "activation_bytes": 0}
    alone = tokens_that_fit([(10 * GIB, 1.0)], **sizes)
    halves = tokens_that_fit([(10 * GIB, 0.5), (10 * GIB, 0.5)], **sizes)
    assert alone is not None
    assert halves == pytest.approx(2 * alone, abs=2)
    assert tokens_that_fit([(40 * GIB, 0.5), (1 * GIB, 0.5)], **sizes) == pytest.approx(alone / 5, abs=2)
    assert tokens_that_fit([(1, 1.0)], **{**sizes, "token_bytes": 0}) is None


# -- a package flash_attn that cannot be imported


@pytest.fixture
def broken_flash_attn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flash_attn").mkdir()
    text = "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda')"
    (tmp_path / "flash_attn" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)


@pytest.mark.usefixtures("broken_flash_attn")
def test_a_flash_attn_that_cannot_be_imported_falls_back_with_a_note_and_is_an_error_by_name(
    folders: Folders,
) -> None:
    prepared = prepared_for(folders("llama"))
    assert prepared.plan.model_kwargs["attn_implementation"] == "flash_attention_2"
    plan = check_architecture(prepared).plan
    [decision] = [decision for decision in plan.decisions if decision.key == "attn_implementation"]
    assert plan.model_kwargs["attn_implementation"] == decision.value == "sdpa"
    assert decision.is_note
    assert "undefined symbol" in decision.reason
    named = prepared_for(folders("llama"), attn_implementation="flash_attention_2")
    with pytest.raises(MachineError, match=r"cannot be imported: flash_attn_2_cuda\.so: undefined symbol"):
        check_architecture(named)


def test_flash_attention_that_a_class_does_not_list_is_never_fetched_from_the_hub(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    prepared = prepared_for(folders("gpt_oss"))
    planned = {**prepared.plan.model_kwargs, "attn_implementation": "flash_attention_2"}
    forced = replace(prepared, plan=replace(prepared.plan, model_kwargs=planned))
    assert check_architecture(forced).plan.model_kwargs["attn_implementation"] == "eager"
