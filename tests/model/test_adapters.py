"""Adapters give the same text as peft itself, are read safely, and are refused where they do not fit."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import Config
from llmctl.errors import MachineError, ModelError, UserError
from llmctl.model.adapters import read_adapter
from llmctl.model.info import read_model_info
from llmctl.plan import PlanRequest, make_plan
from support.lora import write_adapter
from support.machines import EVERYTHING, LAPTOP
from support.tiny import edit_json, write_model

Tiny = Callable[[str], Path]
PROMPT = "the capital of france"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


def load_with(folder: Path, *adapters: Any, merge: bool = False, **sections: Any) -> llmctl.LoadedModel:
    given: dict[str, Any] = {"generation": {"max_new_tokens": 12}, "load": {"dtype": "float32"}, **sections}
    return llmctl.load(folder, adapters=adapters, merge_adapters=merge, **given)


def tokens_by_peft(base: Path, adapters: Sequence[Path], ids: Sequence[int], count: int) -> list[int]:
    """Return the greedy answer of peft itself: `PeftModel.from_pretrained` and its `generate`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name="a0")
    for number, adapter in enumerate(adapters[1:], 1):
        adapted.load_adapter(str(adapter), adapter_name=f"a{number}")
    adapted.base_model.set_adapter([f"a{number}" for number in range(len(adapters))])
    adapted.eval()
    inputs = torch.tensor([list(ids)])
    output = adapted.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=0,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(ids) :]]


@pytest.fixture(scope="module")
def adapters(tiny_models: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return adapters of the tiny Llama, one of each supported kind."""
    root, base = tmp_path_factory.mktemp("adapters"), tiny_models("llama")
    made: dict[str, dict[str, Any]] = {
        "plain": {},
        "pattern": {
            "target_modules": r".*\.(up|down)_proj",
            "rank_pattern": {"layers.0.mlp.up_proj": 2},
            "alpha_pattern": {"down_proj": 3},
            "use_rslora": True,
        },
        "dora": {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    }
    return {
        name: write_adapter(root / name, base, seed=seed, **changes)
        for seed, (name, changes) in enumerate(made.items(), 1)
    }


@pytest.mark.parametrize("kinds", [["plain"], ["pattern"], ["dora"], ["plain", "pattern"]])
def test_the_text_equals_that_of_peft(kinds: list[str], adapters: dict[str, Path], tiny_models: Tiny) -> None:
    folders = [adapters[kind] for kind in kinds]
    loaded = load_with(tiny_models("llama"), *folders)
    done = llmctl.generate(loaded, PROMPT)
    from llmctl.generation.prompt import encode_prompt

    ids = encode_prompt(loaded.tokenizer, PROMPT, loaded.config.chat).ids
    assert list(done.token_ids) == tokens_by_peft(tiny_models("llama"), folders, ids, 12)
    assert done.token_ids != llmctl.generate(load_with(tiny_models("llama")), PROMPT).token_ids
    assert type(loaded.model).__name__ == "LlamaForCausalLM"


def test_merging_gives_the_same_text_and_leaves_no_peft_layers(adapters: dict[str, Path], tiny_models: Tiny) -> None:
    folders = [adapters["plain"], adapters["pattern"]]
    beside, merged = (load_with(tiny_models("llama"), *folders, merge=merge) for merge in (False, True))
    assert llmctl.generate(merged, PROMPT).token_ids == llmctl.generate(beside, PROMPT).token_ids
    assert not [name for name, _ in merged.model.named_parameters() if "lora" in name]
    assert beside.plan.memory.adapter_bytes == sum(4 * one.parameters for one in beside.adapters) > 0
    assert merged.plan.memory.adapter_bytes == 0


def test_a_scale_of_0_disables_an_adapter_and_2_changes_the_text(adapters: dict[str, Path], tiny_models: Tiny) -> None:
    folder, one = tiny_models("llama"), str(adapters["plain"])
    none, twice = ({"id": one, "scale": scale} for scale in (0, 2))
    texts = [llmctl.generate(load_with(folder, *chosen), PROMPT).token_ids for chosen in ([], [none], [one], [twice])]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_takes_an_adapter(bits: int, adapters: dict[str, Path], tiny_models: Tiny) -> None:
    quantization = {"bits": bits, "cache": False, "backend": "bitsandbytes"}  # adapters go on no other
    sections: dict[str, Any] = {"quantization": quantization, "load": {"dtype": "bfloat16"}}
    texts = []
    for chosen, merge in (([], False), ([adapters["plain"]], False), ([adapters["plain"]], True)):
        loaded = load_with(tiny_models("llama"), *chosen, merge=merge, **sections)
        assert loaded.measured.quantization.startswith(f"bitsandbytes {bits}-bit")
        texts.append(llmctl.generate(loaded, PROMPT).token_ids)
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]
    assert "rounds them once more" in loaded.plan.reason("merge_adapters")


@pytest.mark.parametrize("backend", ["llmctl", "torch"])
def test_weights_packed_for_a_cpu_do_not_support_adapters(
    backend: str, adapters: dict[str, Path], tiny_models: Tiny
) -> None:
    with pytest.raises(UserError, match="adapters cannot be put on weights for") as refused:
        load_with(tiny_models("llama"), *adapters.values(), quantization={"bits": 4, "backend": backend})
    assert "bitsandbytes" in str(refused.value.hint)


def test_an_adapter_of_another_model_is_refused_before_weights_are_read(
    adapters: dict[str, Path], tiny_models: Tiny, tmp_path: Path
) -> None:
    wider = write_model(tmp_path / "wider", "llama", hidden_size=96, head_dim=24)
    with pytest.raises(
        UserError, match=r"does not fit .*q_proj of the shape \[64, 64\], the model has \[96, 96\]"
    ) as shape:
        load_with(wider, adapters["plain"])
    assert shape.value.hint == f"--model {tiny_models('llama')}"
    with pytest.raises(UserError, match="the model has no "):
        load_with(tiny_models("gpt2"), adapters["plain"])
    fits = load_with(tiny_models("mistral"), adapters["plain"])
    assert "whose shapes this model has" in fits.plan.reason("adapter")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of the type PREFIX_TUNING"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights"),
        ({"megatron_config": {"x": 1}}, "uses megatron_config"),
        ({"layer_replication": [[0, 100000]]}, "uses layer_replication"),
        ({"not_known_yet": True}, "uses not_known_yet"),
        ({"bias": "all"}, "uses bias"),
        ({"lora_alpha": "much"}, "lora_alpha is not a finite number"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "by a pattern"),
    ],
)
def test_other_adapters_than_plain_lora_are_refused_by_name(
    change: dict[str, Any], says: str, tiny_models: Tiny, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", tiny_models("llama"))
    edit_json(folder / "adapter_config.json", **change)
    with pytest.raises(ModelError, match=says):
        read_adapter(folder, source="some/adapter")


def test_the_patterns_of_a_repository_are_not_evaluated(tiny_models: Tiny, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", tiny_models("llama"))
    right = llmctl.generate(load_with(tiny_models("llama"), folder), PROMPT).token_ids
    hangs = "(([a-z._0-9])+)+!"
    edit_json(folder / "adapter_config.json", target_modules=hangs, exclude_modules=hangs, rank_pattern={hangs: 4})
    assert llmctl.generate(load_with(tiny_models("llama"), folder), PROMPT).token_ids == right


def test_a_pickle_a_whole_model_and_an_empty_folder_are_not_adapters(tiny_models: Tiny, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", tiny_models("llama"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"only as a pickle \(adapter_model.bin\)"):
        load_with(tiny_models("llama"), folder)
    with pytest.raises(ModelError, match="is a whole model, not an adapter"):
        load_with(tiny_models("llama"), tiny_models("qwen3"))
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        llmctl.load(folder)
    with pytest.raises(UserError, match="there is no folder"):
        load_with(tiny_models("llama"), tmp_path / "nowhere")


def test_weights_that_are_missing_or_not_finite_are_refused(tiny_models: Tiny, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tmp_path / "adapter", tiny_models("llama"))
    file = folder / "adapter_model.safetensors"
    whole = load_file(str(file))
    name = sorted(whole)[0]
    save_file({key: value for key, value in whole.items() if key != name.replace("lora_A", "lora_B")}, str(file))
    with pytest.raises(ModelError, match="missing weights"):
        load_with(tiny_models("llama"), folder)
    save_file(whole | {name: torch.full_like(whole[name], torch.nan)}, str(file))
    with pytest.raises(ModelError, match="NaN or infinity"):
        load_with(tiny_models("llama"), folder)


def test_without_peft_the_error_names_the_command(tiny_models: Tiny, adapters: dict[str, Path]) -> None:
    info, adapter = read_model_info(tiny_models("llama")), read_adapter(adapters["plain"], source="some/adapter")
    with pytest.raises(MachineError) as caught:
        make_plan(PlanRequest(Config(), LAPTOP, info, adapters=[adapter]))
    assert "pip install 'llmctl-hf[adapters]'" in str(caught.value.hint)
    assert "peft" not in EVERYTHING
    with pytest.raises(UserError, match="is set without an adapter"):
        make_plan(PlanRequest(Config.model_validate({"model": {"merge_adapters": True}}), LAPTOP, info))


def test_an_adapter_config_beside_a_model_does_not_load_another_model(
    tiny_copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_copy("llama")
    other = write_model(tmp_path / "other", "qwen3")
    plain = llmctl.generate(load_with(folder), PROMPT).token_ids
    write_adapter(tmp_path / "adapter", other)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load_with(folder)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert llmctl.generate(loaded, PROMPT).token_ids == plain


def test_a_load_without_adapters_imports_neither_peft_nor_bitsandbytes(tiny_models: Tiny) -> None:
    code = (
        "import sys, llmctl; llmctl.load(sys.argv[1]); print([m for m in ('peft', 'bitsandbytes') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_models("llama"))], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
