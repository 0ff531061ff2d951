"""A known model as one program computes what its modules compute, to the last bit; any other stays as it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support import tiny

import llmctl
from llmctl.cpu import kernels
from llmctl.cpu.program import compile_model, compiled
from llmctl.generation.engine.packed import Pool, Segment, forward, lay_out
from llmctl.loading.model import LoadedModel

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="the compiled kernels are not here")
PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29] * 3, [2, 4, 6], [9]]
KNOWN = ("llama", "qwen3", "gemma3", "mistral", "phi3")
# what the tests' usual models do not have: biases, layers that do not turn, numbers that are multiplied in
OTHERS = {
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"use_sliding_window": False}),
    "smollm3": (
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {"no_rope_layers": [1, 0], "num_hidden_layers": 2, "use_sliding_window": False},
    ),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    ),
}


def logits(loaded: LoadedModel) -> torch.Tensor:
    """[prompts, vocabulary], all prompts in one pass of the engine."""
    segments = [Segment(ids, 0, [2 * number, 2 * number + 1]) for number, ids in enumerate(PROMPTS)]
    return forward(loaded.model, lay_out(segments, page_tokens=16), Pool(6, 16))


def logits_of_modules(loaded: LoadedModel) -> torch.Tensor:
    """The same from transformers' own forward, one by one."""
    with torch.inference_mode():
        alone = [loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in PROMPTS]
    return torch.stack(alone)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", KNOWN)
def test_a_program_gives_the_logits_of_the_modules_to_the_last_bit(
    tiny_models: Callable[[str], Path], name: str, bits: int | None
) -> None:
    loaded = llmctl.load(tiny_models(name), load={"dtype": "bfloat16"}, quantization={"bits": bits})
    assert compiled(loaded.model) is not None
    assert torch.equal(logits(loaded), logits_of_modules(loaded))


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_architectures_add_is_computed_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.ARCHITECTURES, name, OTHERS[name])
    loaded = llmctl.load(tiny.write_model(tmp_path / name, name), load={"dtype": "bfloat16"})
    assert compiled(loaded.model) is not None
    assert torch.equal(logits(loaded), logits_of_modules(loaded))


@pytest.mark.parametrize("name", KNOWN)
def test_the_modules_still_give_what_torch_alone_gives(tiny_models: Callable[[str], Path], name: str) -> None:
    ours = llmctl.load(tiny_models(name), load={"dtype": "bfloat16"})
    plain = llmctl.load(tiny_models(name), load={"dtype": "bfloat16", "cpu_kernels": False})
    assert compiled(plain.model) is None
    expected = logits_of_modules(plain).float()
    assert torch.linalg.vector_norm(logits_of_modules(ours) - expected) < 0.05 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("name", ["gpt2", "deepseek_v3"])
def test_an_architecture_that_is_not_known_has_no_program(tiny_models: Callable[[str], Path], name: str) -> None:
    assert compiled(llmctl.load(tiny_models(name), load={"dtype": "bfloat16"}).model) is None


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_in_half_precision_stay_with_transformers(tiny_models: Callable[[str], Path], name: str) -> None:
    assert compiled(llmctl.load(tiny_models(name), load={"dtype": "bfloat16"}).model) is None


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_quantised_experts_is_one_program_too(
    tiny_models: Callable[[str], Path], name: str, bits: int
) -> None:
    loaded = llmctl.load(tiny_models(name), load={"dtype": "bfloat16"}, quantization={"bits": bits})
    assert compiled(loaded.model) is not None
    together = logits(loaded)
    assert torch.equal(together, logits_of_modules(loaded))
    one = forward(loaded.model, lay_out([Segment(PROMPTS[2], 0, [0])], page_tokens=16), Pool(1, 16))
    assert torch.equal(one[0], together[2])  # a token alone takes another way through its experts


def _hook(model: torch.nn.Module) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def _activation(model: torch.nn.Module) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def _module(model: torch.nn.Module) -> None:
    model.model.layers[0].self_attn.extra = torch.nn.Identity()


def _linear(model: torch.nn.Module) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj)


@pytest.mark.parametrize("change", [_hook, _activation, _module, _linear])
def test_a_model_that_is_not_what_its_class_says_has_no_program(
    tiny_models: Callable[[str], Path], change: Callable[[torch.nn.Module], None]
) -> None:
    from llmctl.cpu.layers import use_kernels

    plain = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16", "cpu_kernels": False}).model
    use_kernels(plain)
    change(plain)
    assert not compile_model(plain)
    assert compiled(plain) is None


def test_a_model_with_a_program_can_be_copied_and_trained(tiny_models: Callable[[str], Path]) -> None:
    import copy

    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"})
    twin = copy.deepcopy(loaded.model)
    assert compiled(twin) is None
    ids = torch.tensor([[5, 6, 7]])
    twin.train()
    twin(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    with torch.inference_mode():
        assert torch.equal(twin(input_ids=ids).logits, loaded.model(input_ids=ids).logits)


def test_two_threads_that_generate_at_once_do_not_disturb_each_other(tiny_models: Callable[[str], Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"}, generation={"max_new_tokens": 40})
    prompts = ["the capital of france", "two plus two"] * 4
    alone = [llmctl.generate(loaded, prompt).token_ids for prompt in prompts[:2]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: llmctl.generate(loaded, prompt).token_ids, prompts))
    assert together == alone * 4


def test_tables_that_lead_outside_are_refused(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="vocabulary"):
        forward(loaded.model, lay_out([Segment([100_000], 0, [0])], page_tokens=16), Pool(1, 16))
    with pytest.raises(ValueError, match="pool"):
        forward(loaded.model, lay_out([Segment([5], 0, [3])], page_tokens=16), Pool(1, 16))
