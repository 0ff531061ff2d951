"""Compiled models: the program and the modules give the same bits; models of other families are not changed."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.support import tiny
from tests.support.program_families import (
    FAMILIES,
    LATENT,
    LINEAR_RECURRENT,
    MIXTURES,
    OTHER_ROUNDING,
    QUANTIZED,
    RECURRENT,
    family_folder,
)

import llmctl
from llmctl.cpu import kernels
from llmctl.cpu.layers import use_kernels
from llmctl.cpu.program import compile_model, compiled, families
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.loading.model import LoadedModel

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="the compiled kernels are not here")
PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29] * 3, [2, 4, 6], [9]]
CASES = [(name, None) for name in FAMILIES] + [(name, bits) for name in QUANTIZED for bits in (8, 4)]


@pytest.fixture(scope="module")
def folder_of(tiny_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a class's tiny model, created once."""
    return partial(family_folder, root=tmp_path_factory.mktemp("families"), tiny_models=tiny_models)


def load(folder: Path, *, bits: int | None = None, dtype: str = "bfloat16") -> LoadedModel:
    """Load a tiny model, with random values instead of the ones and zeros of norm weights and biases."""
    loaded = llmctl.load(folder, load={"dtype": dtype}, quantization={"bits": bits})
    change_vectors(loaded.model)
    return loaded


def change_vectors(model: torch.nn.Module) -> None:
    made = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            is_vector = parameter.dim() == 1 and parameter.is_floating_point()
            if is_vector and parameter.numel() > 1:  # programs read single numbers when they are compiled
                parameter += 0.2 * torch.randn(parameter.shape, generator=made).to(parameter.dtype)
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("expert_bias"):
                buffer += 0.2 * torch.randn(buffer.shape, generator=made).to(buffer.dtype)


def logits(loaded: LoadedModel) -> torch.Tensor:
    """Return logits [prompts, vocabulary], computed for all prompts in one pass of the engine."""
    segments = [Segment(ids, 0, [2 * number, 2 * number + 1], number) for number, ids in enumerate(PROMPTS)]
    return forward(loaded.model, lay_out(segments, page_tokens=16), CachePool(6, 16, slots=3))


def logits_of_modules(model: torch.nn.Module) -> torch.Tensor:
    """Return the same logits, computed by transformers' forward for one prompt after the other."""
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in PROMPTS]
    return torch.stack(alone)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result.double() - expected.double()).norm() / expected.double().norm()).item()


def test_every_family_has_a_row_in_the_table_of_these_tests() -> None:
    assert set(families()) == set(FAMILIES)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_program_gives_the_logits_of_the_modules_to_the_last_bit(
    folder_of: Callable[[str], Path], name: str, bits: int | None
) -> None:
    loaded = load(folder_of(name), bits=bits)
    assert compiled(loaded.model) is not None
    together = logits(loaded)
    expected = logits_of_modules(loaded.model)
    if name in (*LINEAR_RECURRENT, *LATENT, *OTHER_ROUNDING):
        # the modules also round the latents to 8 bits if kv_b_proj is quantised
        assert relative_error(together, expected) < (0.025 if bits is None and name not in OTHER_ROUNDING else 0.05)
    else:
        assert torch.equal(together, expected)
    one = forward(loaded.model, lay_out([Segment(PROMPTS[2], 0, [0])], page_tokens=16), CachePool(1, 16))
    assert torch.equal(one[0], together[2])  # a single token takes another code path in MoE layers


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "Gemma4ForCausalLM", "Ministral3ForCausalLM", "Llama4ForCausalLM", *LATENT, *RECURRENT]
)
def test_logits_depend_neither_on_the_division_into_passes_nor_on_earlier_sequences(
    folder_of: Callable[[str], Path], name: str
) -> None:
    model = load(folder_of(name)).model
    pool = CachePool(6, 16, slots=3)

    def run(*parts: tuple[list[int], int, int]) -> torch.Tensor:
        segments = [Segment(ids, start, [2 * slot, 2 * slot + 1], slot) for ids, start, slot in parts]
        return forward(model, lay_out(segments, page_tokens=16), pool)

    first, second, third = PROMPTS
    expected = [run((ids, 0, slot))[0] for slot, ids in enumerate(PROMPTS)]
    run((first[:11], 0, 2), (third, 0, 0))
    run((second[:1], 0, 0), (first[11:12], 11, 2))
    result = run((first[12:], 12, 2), (second[1:], 1, 0), (third, 0, 1))
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize(
    "name",
    [
        *("LlamaForCausalLM", "Gemma4ForCausalLM", "Olmo3ForCausalLM", "ApertusForCausalLM", "GPTNeoXForCausalLM"),
        *(*OTHER_ROUNDING, *LATENT, *RECURRENT),
    ],
)
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float16", 5e-3)])
def test_a_program_computes_in_the_dtype_of_the_model(
    folder_of: Callable[[str], Path], name: str, dtype: str, rounding: float
) -> None:
    loaded = load(folder_of(name), dtype=dtype)
    assert compiled(loaded.model) is not None
    together, expected = logits(loaded), logits_of_modules(loaded.model)
    if name in (*LINEAR_RECURRENT, *LATENT, *OTHER_ROUNDING) or (name, dtype) == ("Lfm3ForCausalLM", "float32"):
        assert relative_error(together, expected) < rounding  # LFM3: torch's sigmoid rounds otherwise
    else:
        assert torch.equal(together, expected)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=getattr(torch, dtype)).eval()
    change_vectors(reference)
    assert relative_error(together, logits_of_modules(reference.float())) < rounding


@pytest.mark.parametrize("name", FAMILIES)
def test_the_modules_that_the_kernels_compute_agree_with_transformers_own(
    folder_of: Callable[[str], Path], name: str
) -> None:
    """Compare norms, gated MLPs, routers and experts with the forward of their class in float32."""
    model = load(folder_of(name)).model
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.bfloat16).eval()
    change_vectors(reference)
    reference = reference.float()
    own = dict(reference.named_modules())
    for module in (*model.modules(), *reference.modules()):
        for name_of_bias in ("e_score_correction_bias", "expert_bias"):  # MiniMax-M2 and LFM2 pass it to the router
            if hasattr(module, name_of_bias) and hasattr(module, "gate"):
                module.gate.correction = getattr(module, name_of_bias)
    seen = set()
    for path, module in model.named_modules():
        if "forward" not in vars(module):
            continue
        is_norm = type(module).__name__.endswith("Norm")
        width = module.weight.shape[-1] if is_norm and hasattr(module, "weight") else model.config.hidden_size
        if type(module).__name__ == "NemotronHExperts":
            width = model.config.moe_latent_size
        x = torch.randn(7, width, generator=torch.Generator().manual_seed(3)).bfloat16()
        if is_norm:
            x *= 1e-3  # small enough for epsilon to matter
        with torch.inference_mode():
            result, expected = (call(one, inputs) for one, inputs in ((module, x), (own[path], x.float())))
        if isinstance(result, tuple):
            (_, result, chosen), (_, expected, expected_experts) = result, expected
            order, expected_order = chosen.argsort(-1), expected_experts.argsort(-1)  # some classes do not sort
            assert torch.equal(chosen.gather(1, order), expected_experts.gather(1, expected_order)), path
            result, expected = result.gather(1, order), expected.gather(1, expected_order)
        assert relative_error(result, expected) < (5e-3 if is_norm else 1e-2), (path, relative_error(result, expected))
        seen.add("norm" if is_norm else "MLP or experts")
    assert seen == {"norm", "MLP or experts"}


def call(module: torch.nn.Module, x: torch.Tensor) -> Any:
    """Call a module with x [7, hidden], and with the further arguments that modules of MoE layers need."""
    if type(module).__name__.endswith("Experts"):
        made = torch.Generator().manual_seed(4)
        experts = torch.rand(7, len(module.down_proj), generator=made).argsort(-1)[:, :2]
        return module(x, experts, torch.rand(7, 2, generator=made).to(x.dtype))
    if type(module).__name__ in ("MiniMaxM2TopKRouter", "Lfm2MoeTopKRouter"):
        return module(x, module.correction)
    return module(x[None])[0] if type(module).__name__.endswith(("MoeBlock", "Llama4TextMoe")) else module(x)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_gives_the_logits_of_transformers_in_float32_up_to_rounding(
    folder_of: Callable[[str], Path], name: str
) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.bfloat16).eval()
    change_vectors(reference)
    pairs = zip(logits(load(folder_of(name))), logits_of_modules(reference.float()), strict=True)
    # rounding can change the choice of an expert, and with it one of the prompts
    assert sorted(relative_error(result, expected) for result, expected in pairs)[1 if name in MIXTURES else 2] < 0.05


@pytest.mark.parametrize("name", ["gpt2"])
def test_an_architecture_that_is_not_known_has_no_program(tiny_models: Callable[[str], Path], name: str) -> None:
    assert compiled(llmctl.load(tiny_models(name), load={"dtype": "bfloat16"}).model) is None


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
def test_a_model_with_unexpected_modules_has_no_program(
    tiny_models: Callable[[str], Path], change: Callable[[torch.nn.Module], None]
) -> None:

    plain = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16", "cpu_kernels": False}).model
    use_kernels(plain)
    change(plain)
    assert not compile_model(plain)
    assert compiled(plain) is None


def test_a_model_with_a_program_can_be_copied_and_trained(tiny_models: Callable[[str], Path]) -> None:

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

    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"}, generation={"max_new_tokens": 40})
    prompts = ["the capital of france", "two plus two"] * 4
    alone = [llmctl.generate(loaded, prompt).token_ids for prompt in prompts[:2]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: llmctl.generate(loaded, prompt).token_ids, prompts))
    assert together == alone * 4


def test_tables_with_entries_out_of_range_are_refused(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="vocabulary"):
        forward(loaded.model, lay_out([Segment([100_000], 0, [0])], page_tokens=16), CachePool(1, 16))
    with pytest.raises(ValueError, match="KV cache"):
        forward(loaded.model, lay_out([Segment([5], 0, [3])], page_tokens=16), CachePool(1, 16))


def test_a_model_without_attention_has_no_program(tmp_path: Path) -> None:
    tiny.ARCHITECTURES["convolutions"] = ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "conv"]})
    folder = tiny.write_model(tmp_path / "model", "convolutions")
    assert compiled(llmctl.load(folder, load={"dtype": "bfloat16"}).model) is None


def test_sequences_without_a_slot_of_their_own_are_refused(folder_of: Callable[[str], Path]) -> None:
    model = load(folder_of("Lfm2ForCausalLM")).model
    for slots in ((0, 2), (1, 1)):
        segments = [Segment([5], 0, [page], slot) for page, slot in enumerate(slots)]
        with pytest.raises(ValueError, match="slot of its own among the 2"):
            forward(model, lay_out(segments, page_tokens=16), CachePool(2, 16, slots=2))
