"""The attention of packed passes on GPUs, with the kernels' semantics computed on the CPU.

The code is that of a GPU; only the function that it calls is `support.varlen` in place of torch's or flash-attn's.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.bias import CausalBias

import llmctl
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.packable import is_packable
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, generation_config, make_request
from llmctl.gpu import paged_attention, sdpa
from llmctl.gpu.call import AttentionBackend, AttentionCall
from llmctl.gpu.flash import FlashAttention
from llmctl.gpu.paged_attention import PagedAttention, backends_for, choose_attention
from llmctl.gpu.varlen import VarlenAttention, varlen_backends, ways_of
from llmctl.loading.attention_mask import Score, VisibleTokens
from llmctl.loading.model import LoadedModel
from support.program_families import FAMILIES, family_folder
from support.varlen import HALF, ReferenceKernel, skip_without_pages

ANY = (torch.float32, *HALF)
CROWDED = EngineCapacity(8, 40, 400)
MODULES = {"dtype": "float32", "cpu_kernels": False}
PAGES, COPIES, SDPA = "varlen_attn (pages)", "varlen_attn (copies)", "sdpa"
WITH_SOFT_CAP = {"Gemma2ForCausalLM"}  # which torch's kernel lacks


def reference(**how: Any) -> ReferenceKernel:
    return ReferenceKernel(page_multiple=16, dtypes=ANY, **how)


def varlen(kernel: ReferenceKernel, *, page_tokens: int = 16) -> list[AttentionBackend]:
    skip_without_pages()
    return [
        VarlenAttention(kernel.varlen_attn, page_tokens=page_tokens),
        VarlenAttention(kernel.varlen_attn, reads_pages=False),
    ]


def use(loaded: LoadedModel, backends: list[AttentionBackend]) -> PagedAttention:
    attention = PagedAttention(backends, replaces_kernels=True)
    choose_attention(loaded.model, attention)
    return attention


def requests_for(loaded: LoadedModel, count: int = 5) -> list[Request]:
    chance = random.Random(1)
    prompts = [[chance.randrange(5, 300) for _ in range(chance.randrange(1, 70))] for _ in range(count)]
    return [make_request(loaded, Prompt(tuple(ids)), seed=number) for number, ids in enumerate(prompts)]


def generated(loaded: LoadedModel, request: Request) -> tuple[int, ...]:
    """Return the answer of `model.generate`."""
    ids = torch.tensor([request.prompt.ids])
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=generation_config(request.arguments)
        )
    return tuple(output[0, ids.shape[1] :].tolist())


def answers(loaded: LoadedModel, requests: list[Request], capacity: EngineCapacity = CROWDED) -> list[tuple[int, ...]]:
    found = dict(Engine(loaded, capacity).run(enumerate(requests)))
    return [found[number].token_ids for number in range(len(requests))]


@pytest.fixture
def folder_of(tiny_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: family_folder(name, tmp_path_factory.getbasetemp() / "families", tiny_models)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"Llama4ForCausalLM"}))  # which is not packed by modules
def test_packed_answers_by_one_call_equal_those_of_generate(family: str, folder_of: Callable[[str], Path]) -> None:
    loaded = llmctl.load(folder_of(family), load=MODULES, generation={"max_new_tokens": 8})
    requests = requests_for(loaded)
    expected = [generated(loaded, one) for one in requests]
    attention = use(loaded, varlen(reference()))
    assert is_packable(loaded)
    assert answers(loaded, requests) == expected
    assert (SDPA in attention.used) == (family in WITH_SOFT_CAP)


@pytest.mark.parametrize("family", ["Gemma2ForCausalLM", "GptOssForCausalLM", "MistralForCausalLM", "LlamaForCausalLM"])
def test_flash_attn_computes_soft_caps_sinks_and_windows(family: str, folder_of: Callable[[str], Path]) -> None:
    loaded = llmctl.load(folder_of(family), load=MODULES, generation={"max_new_tokens": 12})
    requests = requests_for(loaded)
    expected = [generated(loaded, one) for one in requests]
    attention = use(loaded, [FlashAttention(reference().flash_attn_varlen_func, page_tokens=16)])
    assert answers(loaded, requests) == expected
    assert attention.used == {"flash_attn (pages)"}


def test_a_layer_attends_once_for_all_sequences(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load=MODULES)
    kernel = reference()
    attention = use(loaded, varlen(kernel))
    pool, segments = CachePool(8, 16), [Segment([5, 6, 7 + n], 0, [n]) for n in range(8)]
    forward(loaded.model, lay_out(segments, page_tokens=16), pool)
    kernel.calls.clear()
    forward(loaded.model, lay_out([Segment([9], 3, [n]) for n in range(8)], page_tokens=16), pool)
    layers = loaded.model.config.num_hidden_layers
    assert kernel.calls == [{"rows": 8, "window": (-1, -1), "max_q": 1, "paged": True}] * layers
    assert attention.is_single_call


def test_a_window_counts_the_other_tokens(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("gemma3"), load=MODULES)
    assert loaded.model.config.sliding_window == 16
    kernel = reference()
    use(loaded, varlen(kernel))
    pool = CachePool(4, 16)
    forward(loaded.model, lay_out([Segment(range(5, 45), 0, range(3))], page_tokens=16), pool)
    prompt = [call["window"] for call in kernel.calls if call["rows"] == 40]
    kernel.calls.clear()
    forward(loaded.model, lay_out([Segment([5], 40, range(3))], page_tokens=16), pool)
    token = [call["window"] for call in kernel.calls if call["rows"] == 1]
    assert (prompt, token) == ([(15, 0), (-1, 0)], [(15, 0), (-1, -1)])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_oss"])
def test_half_precision_reads_pages_of_256_tokens(tiny_models: Callable[[str], Path], architecture: str) -> None:
    loaded = llmctl.load(tiny_models(architecture), load={**MODULES, "dtype": "bfloat16"})
    kernel = ReferenceKernel()
    attention = use(loaded, varlen(kernel, page_tokens=256))
    engine = Engine(loaded, CROWDED)
    assert engine._packed is not None
    assert engine._packed.page_tokens == 256
    requests = requests_for(loaded, 3)
    assert all(one.token_ids for _, one in engine.run(enumerate(requests)))
    assert attention.used == {PAGES}
    assert attention.failures == {}
    assert {call["paged"] for call in kernel.calls} == {True}


@pytest.mark.parametrize(
    ("broken", "architecture", "used"),
    [
        ("pages", "llama", {COPIES}),
        ("windows", "gemma3", {PAGES, SDPA}),
        ("sinks", "gpt_oss", {SDPA}),
        ("sinks", "llama", {PAGES}),
    ],
)
def test_what_a_kernel_computes_wrongly_goes_to_the_next_one(
    tiny_models: Callable[[str], Path], broken: str, architecture: str, used: set[str]
) -> None:
    loaded = llmctl.load(tiny_models(architecture), load=MODULES, generation={"max_new_tokens": 12})
    requests = requests_for(loaded)
    expected = [generated(loaded, one) for one in requests]
    attention = use(loaded, varlen(reference(broken=broken)))
    assert answers(loaded, requests) == expected
    assert attention.used == used
    assert bool(attention.failures) == (used != {PAGES})


def test_float32_goes_to_sdpa_because_the_kernel_refuses_it(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load=MODULES, generation={"max_new_tokens": 4})
    request = requests_for(loaded, 1)[0]
    expected = generated(loaded, request)
    attention = use(loaded, varlen(ReferenceKernel(page_multiple=16)))
    assert answers(loaded, [request]) == [expected]
    assert attention.used == {SDPA}
    assert set(attention.failures) == {PAGES, COPIES}


@pytest.mark.parametrize(("architecture", "used"), [("llama", {COPIES}), ("gpt_oss", {SDPA})])
def test_a_release_without_pages_and_groups_reads_copies(
    tiny_models: Callable[[str], Path], architecture: str, used: set[str]
) -> None:
    skip_without_pages()
    kernel = reference()

    def of_an_older_torch(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Any:
        how = {"scale": scale, "window_size": window_size, "enable_gqa": True}
        return kernel.varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **how)

    loaded = llmctl.load(tiny_models(architecture), load=MODULES, generation={"max_new_tokens": 8})
    requests = requests_for(loaded, 3)
    expected = [generated(loaded, one) for one in requests]
    attention = use(loaded, [*ways_of(of_an_older_torch)])
    assert answers(loaded, requests) == expected
    assert attention.used == used


def test_a_cached_prefix_is_shared_in_pages_of_any_size(tiny_models: Callable[[str], Path]) -> None:
    loaded = llmctl.load(tiny_models("llama"), load=MODULES, generation={"max_new_tokens": 6})
    shared = tuple(range(10, 50))
    requests = [make_request(loaded, Prompt((*shared, 5))), make_request(loaded, Prompt((*shared, 6, 7)))]
    expected = [generated(loaded, one) for one in requests]
    use(loaded, varlen(reference(), page_tokens=256))
    engine = Engine(loaded, EngineCapacity(4, 512, 2048))
    found = [dict(engine.run([(0, one)]))[0].token_ids for one in requests]
    assert found == expected
    assert engine.prefilled_tokens == 41 + 2


class TestTheChoiceByCapability:
    @pytest.fixture(autouse=True)
    def _packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flash = FlashAttention(reference().flash_attn_varlen_func)
        monkeypatch.setattr(paged_attention, "flash_backends", lambda: [flash])

    def names(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], implementation: str) -> list[str]:
        monkeypatch.setattr(paged_attention, "cuda_capability", lambda _: capability)
        return [one.name for one in backends_for(torch.device("cuda:0"), implementation=implementation)]

    def test_flash_attention_2_by_name_is_what_packed_passes_try_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.names(monkeypatch, (8, 0), "flash_attention_2")[0] == "flash_attn (pages)"

    def test_torch_s_own_kernel_comes_first_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        skip_without_pages()
        names = self.names(monkeypatch, (9, 0), "sdpa")
        assert names == [PAGES, "varlen_attn (pages, FlashAttention-3)", COPIES, "flash_attn (pages)"]

    def test_below_capability_8_and_elsewhere_only_sdpa_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.names(monkeypatch, (7, 5), "sdpa") == []
        assert backends_for(torch.device("mps"), implementation="sdpa") == []

    def test_this_torch_can_read_pages(self) -> None:
        skip_without_pages()
        assert [one.page_tokens for one in varlen_backends()] == [256, 256, 0]

    @pytest.mark.parametrize(
        ("added", "names"),
        [
            (("is_causal", "return_aux"), []),  # torch 2.10
            (("return_aux", "scale", "window_size"), [COPIES]),  # 2.11
        ],
    )
    def test_a_function_of_an_older_torch_is_used_if_it_takes_what_llmctl_passes(
        self, monkeypatch: pytest.MonkeyPatch, added: tuple[str, ...], names: list[str]
    ) -> None:
        def varlen_attn() -> None:
            raise AssertionError("only its signature is read")

        arguments = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", *added)
        signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in arguments])
        monkeypatch.setattr(varlen_attn, "__signature__", signature, raising=False)
        module = SimpleNamespace(varlen_attn=varlen_attn)
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        assert [one.name for one in varlen_backends()] == names

    def test_torch_2_9_which_has_no_such_function_leaves_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
        assert varlen_backends() == []
        assert self.names(monkeypatch, (9, 0), "sdpa") == ["flash_attn (pages)"]


class TestSdpa:
    """torch's SDPA with the arguments that it gets on cards which are not here. The tensors are on the CPU."""

    @pytest.fixture
    def attend(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
        """Attend with 8 heads of queries and 2 of keys as on a card; check the result, and return the arguments."""
        compute = torch.nn.functional.scaled_dot_product_attention

        def attend(
            device: str, capability: tuple[int, int], tokens: int, count: int, dtype: Any = torch.bfloat16, **hides: int
        ) -> dict[str, Any]:
            calls: list[dict[str, Any]] = []

            def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
                calls.append({"key_heads": key.shape[1], **options})
                with monkeypatch.context() as patch:  # CausalBias recognises the function by its identity
                    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", compute)
                    return compute(query, key, value, **options)

            monkeypatch.setattr(sdpa, "cuda_capability", lambda _: capability)
            monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
            layout = lay_out([Segment(range(tokens), count - tokens, range(-(-count // 16)))], page_tokens=16)
            query, keys, values = (
                torch.randn(n, heads, 64).to(dtype) for n, heads in ((tokens, 8), (count, 2), (count, 2))
            )
            call = AttentionCall(query, keys, values, layout, Score(0.125, VisibleTokens(**hides)))
            expected = sdpa.SdpaAttention().attend(call)
            monkeypatch.setattr(sdpa, "device_type", lambda _: device)
            assert torch.allclose(sdpa.SdpaAttention().attend(call), expected, atol=0.02)
            return calls[-1]

        return attend

    def test_heads_are_grouped_only_where_a_fused_kernel_takes_them(self, attend: Any) -> None:
        grouped = attend("cuda", (8, 0), 20, 20)
        assert (grouped["key_heads"], grouped["enable_gqa"], grouped["is_causal"]) == (2, True, True)
        for device, capability, dtype in (
            ("cuda", (7, 5), torch.float16),
            ("cuda", (9, 0), torch.float32),
            ("mps", (0, 0), torch.bfloat16),
        ):
            repeated = attend(device, capability, 20, 20, dtype)
            assert (repeated["key_heads"], repeated["enable_gqa"], repeated["is_causal"]) == (8, False, True)

    @pytest.mark.parametrize("capability", [(7, 0), (8, 9)])
    def test_a_later_chunk_of_a_prompt_has_no_mask_in_memory(self, attend: Any, capability: tuple[int, int]) -> None:
        found = attend("cuda", capability, 20, 50)
        assert isinstance(found["attn_mask"], CausalBias)
        assert (found["key_heads"], found["enable_gqa"]) == (8, False)

    @pytest.mark.parametrize(("hides", "keys"), [({"window": 16}, 35), ({"chunk": 16}, 34)])
    def test_a_window_or_chunk_has_a_mask_and_repeated_heads(
        self, attend: Any, hides: dict[str, int], keys: int
    ) -> None:
        found = attend("cuda", (9, 0), 20, 50, **hides)
        assert found["attn_mask"].shape == (20, keys)  # keys before every window are not read
        assert (found["key_heads"], found["enable_gqa"]) == (8, False)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("copied", [1, 1 << 27])
def test_a_decode_step_on_an_older_card_takes_several_sequences_at_a_time(
    tiny_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, architecture: str, copied: int
) -> None:
    loaded = llmctl.load(tiny_models(architecture), load=MODULES, generation={"max_new_tokens": 24})
    requests = requests_for(loaded)
    expected = [generated(loaded, one) for one in requests]
    use(loaded, [])
    assert is_packable(loaded)
    batches, compute = set(), torch.nn.functional.scaled_dot_product_attention

    def record(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        batches.add(query.shape[0])
        assert not options.get("enable_gqa")
        return compute(query, key, *rest, **options)

    monkeypatch.setattr(sdpa, "device_type", lambda _: "mps")
    monkeypatch.setattr(sdpa, "_COPIED_BYTES", copied)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    assert answers(loaded, requests) == expected
    if architecture != "gpt_oss":  # sinks need all scores
        assert (max(batches) > 1) == (copied > 1)


def test_transformers_own_sdpa_repeats_heads_below_capability_8(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    sdpa.repeat_heads_where_needed()
    compute, seen = torch.nn.functional.scaled_dot_product_attention, []

    def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((key.shape[1], options.get("enable_gqa", False)))
        return compute(query, key, value, **options)

    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 4, True  # type: ignore[assignment]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    monkeypatch.setattr(sdpa, "device_type", lambda _: "cuda")
    query, key = torch.randn(1, 8, 20, 64).half(), torch.randn(1, 2, 20, 64).half()
    outputs = []
    for capability in ((7, 5), (8, 0)):
        monkeypatch.setattr(sdpa, "cuda_capability", lambda _, found=capability: found)
        outputs.append(sdpa_attention_forward(module, query, key, key, None)[0])
    assert seen == [(8, False), (2, True)]
    assert torch.allclose(*outputs, atol=1e-3)


def test_a_sequence_with_images_returns_to_one_call_when_it_decodes() -> None:
    seeing = Segment([5, 6, 7], 0, [0], visible_ends=([3, 3, 3], [1, 2, 3]))
    layout = lay_out([seeing, Segment([8], 4, [1])], page_tokens=16)
    assert layout.visible_end is not None
    assert layout.visible_end.tolist() == [3, 3, 3, 5]
    assert layout.window_visible_end is None
    decoding = lay_out([replace(seeing, ids=[9], start=3, visible_ends=([4], [4]))], page_tokens=16)
    assert (decoding.visible_end, decoding.window_visible_end) == (None, None)


def test_all_tables_of_a_pass_are_parts_of_one_tensor() -> None:
    segments = [Segment([5, 6, 7], 14, [3, 4], 2), Segment([8], 0, [1], 1)]
    layout = lay_out(segments, page_tokens=16, pages=4)
    tables = {
        "input_ids": ([[5, 6, 7, 8]], torch.int64),
        "position_ids": ([[14, 15, 16, 0]], torch.int64),
        "slots": ([62, 63, 64, 16], torch.int64),
        "last": ([2, 3], torch.int64),
        "query_start": ([0, 3, 4], torch.int32),
        "kv_length": ([17, 1], torch.int32),
        "key_start": ([0, 17, 18], torch.int32),
        "state_slots": ([2, 1], torch.int32),
        "page_table": ([[3, 4, 0, 0], [1, 0, 0, 0]], torch.int32),
    }
    for name, (values, dtype) in tables.items():
        table = getattr(layout, name)
        assert (table.tolist(), table.dtype) == (values, dtype)
        assert table.untyped_storage().data_ptr() == layout.packed.untyped_storage().data_ptr()
    assert layout.key_slots.tolist() == [*range(48, 65), 16]
    assert (layout.max_query, layout.max_kv) == (3, 64)
