"""A model that is partly in RAM beside a GPU, dispatched by accelerate: `torch.device("cpu")` stands for the GPU.

accelerate and transformers take the name "cpu" for RAM, and any other device for one that computes.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmctl.config import settings_from_mapping
from llmctl.generation.engine import engine_for_many
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.device_map import layer_shares, with_complete_device_map
from llmctl.loading.loader import load_prepared
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import Prepared, prepare
from llmctl.loading.weights import empty_model
from llmctl.plan.memory import module_bytes, tied_modules
from support.tiny import write_model

GPU = torch.device("cpu")
PROMPTS = [(5,), tuple(range(7, 60)), (3, 4, 5)]


def prepared_for(folder: Path) -> Prepared:
    load = {"cpu_kernels": False, "dtype": "float32"}
    sections = {"model": {"id": str(folder)}, "load": load, "generation": {"max_new_tokens": 8}}
    return prepare(settings_from_mapping(sections), offline=True)


def spilled(prepared: Prepared) -> Prepared:
    """Put the second half of the modules in RAM, and the rest on the stand-in of a GPU."""
    modules = list(module_bytes(prepared.info, dtype="float32"))
    device_map = {name: GPU if n < len(modules) // 2 else "cpu" for n, name in enumerate(modules)}
    tied = tied_modules(prepared.info)
    if tied is not None:
        device_map[tied[0]] = device_map[tied[1]]
    plan = replace(prepared.plan, model_kwargs={**prepared.plan.model_kwargs, "device_map": device_map})
    return with_complete_device_map(replace(prepared, plan=plan), empty_model(prepared))


def packed(loaded: LoadedModel) -> dict[int, tuple[int, ...]]:
    requests = ((n, make_request(loaded, Prompt(ids))) for n, ids in enumerate(PROMPTS))
    return {n: answer.token_ids for n, answer in engine_for_many(loaded).run(requests)}  # type: ignore[union-attr]


def alone(loaded: LoadedModel) -> tuple[int, ...]:
    *_, last = stream_request(loaded, make_request(loaded, Prompt(PROMPTS[1])))
    assert last.completion is not None
    return last.completion.token_ids


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mixtral"])
def test_a_spilled_model_gives_the_same_answers_packed_and_alone(name: str, tmp_path: Path) -> None:
    prepared = prepared_for(write_model(tmp_path / name, name))
    whole, spread = load_prepared(prepared), load_prepared(spilled(prepared))
    assert any(parameter.is_meta for parameter in spread.model.parameters()), "weights in RAM are copied for each pass"
    assert not any(buffer.is_meta for buffer in spread.model.buffers())
    assert packed(spread) == packed(whole)
    assert alone(spread) == alone(whole)


def test_the_layers_in_ram_have_their_cache_on_the_gpu(tmp_path: Path) -> None:
    spread = load_prepared(spilled(prepared_for(write_model(tmp_path / "llama"))))
    assert layer_shares(spread.model) == {GPU: 1.0}


def test_accelerate_does_not_warn_of_what_the_plan_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_prepared(spilled(prepared_for(write_model(tmp_path / "llama"))))
    assert "meta device" not in caplog.text
