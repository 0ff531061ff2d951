"""Decode steps by recorded graphs, with a recorder that repeats the recorded computation in place of a GPU."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import llmctl
from llmctl.generation.engine import Engine, EngineCapacity, cache_pool
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.decode_graphs import DecodeGraphs, batch_sizes
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.packed_modules import forward_modules, why_not_recorded
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request, make_request
from llmctl.gpu.call import AttentionBackend, AttentionCall
from llmctl.gpu.paged_attention import PagedAttention, choose_attention
from llmctl.gpu.varlen import VarlenAttention, varlen_backends
from llmctl.loading.model import LoadedModel
from support.varlen import HALF, ReferenceKernel, skip_without_pages
from support.vision.build import build
from support.vision.check import request_of
from support.vision.pictures import picture

CAPACITY = EngineCapacity(8, 64, 800)


class Recorder:
    """Repeats a computation and writes its result over the first one, as a graph does. Its state: the recordings."""

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses
        self.replays = 0
        self.outputs: list[torch.Tensor] = []

    def record(self, run: Callable[[], torch.Tensor]) -> Any:
        if self._refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        run()  # a real one runs twice, too
        output = run()
        self.outputs.append(output)
        recorder = self

        class Recording:
            def replay(self) -> torch.Tensor:
                recorder.replays += 1
                with torch.inference_mode():
                    output.copy_(run())
                return output

        return Recording()


@pytest.fixture
def load(tiny_models: Callable[[str], Path]) -> Callable[..., LoadedModel]:
    """Load a tiny model whose packed attention is one call for all sequences."""

    def load(architecture: str = "llama", **generation: object) -> LoadedModel:
        loaded = llmctl.load(
            tiny_models(architecture),
            load={"dtype": "float32", "cpu_kernels": False},
            generation={"max_new_tokens": 20, **generation},
        )
        use_one_call(loaded)
        return loaded

    return load


def use_one_call(loaded: LoadedModel) -> None:
    """Make packed attention one call for all sequences."""
    skip_without_pages()
    kernel = ReferenceKernel(page_multiple=16, dtypes=(torch.float32, *HALF))
    backends = [VarlenAttention(kernel.varlen_attn, page_tokens=16)]
    choose_attention(loaded.model, PagedAttention(backends, replaces_kernels=True))


def engine_of(loaded: LoadedModel, recorder: Recorder | None, capacity: EngineCapacity = CAPACITY) -> Engine:
    return Engine(loaded, capacity, recorder_for=lambda _: recorder)


def requests_for(loaded: LoadedModel, count: int) -> list[Request]:
    chance = random.Random(1)
    prompts = [[chance.randrange(5, 300) for _ in range(chance.randrange(1, 60))] for _ in range(count)]
    return [make_request(loaded, Prompt(tuple(ids)), seed=number) for number, ids in enumerate(prompts)]


def answers(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    found = dict(engine.run(enumerate(requests)))
    return [found[number].token_ids for number in range(len(requests))]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "gpt_oss", "mixtral", "lfm2", "qwen3_5"])
def test_answers_with_graphs_equal_those_without(load: Callable[..., LoadedModel], architecture: str) -> None:
    loaded = load(architecture)
    requests, recorder = requests_for(loaded, 10), Recorder()
    engine = engine_of(loaded, recorder)
    assert answers(engine, requests) == answers(engine_of(loaded, None), requests)
    assert engine._packed is not None
    assert engine._packed.graphs is not None
    assert engine._packed.graphs.failure is None
    assert engine._packed.graphs.sizes[-1] == 8
    assert recorder.replays > 20
    assert engine.kv_usage == 0


def test_a_batch_is_padded_to_the_next_size() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 4, 8]
    assert batch_sizes(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


class TestOneStep:
    @pytest.fixture
    def pool(self) -> CachePool:
        return CachePool(8, 16, pads=True)

    def graphs(self, loaded: LoadedModel, pool: CachePool, recorder: Recorder) -> DecodeGraphs:
        segments = [Segment([5, 6, 7 + n], 0, [n]) for n in range(6)]
        forward(loaded.model, lay_out(segments, page_tokens=16), pool)
        return DecodeGraphs(loaded.model, pool, recorder, sequences=8, pages=3)

    def steps(self, count: int, start: int = 3) -> list[Segment]:
        return [Segment([20 + n], start, [n]) for n in range(count)]

    def test_the_first_step_of_a_size_runs_without(self, load: Callable[..., LoadedModel], pool: CachePool) -> None:
        recorder = Recorder()
        graphs = self.graphs(load(), pool, recorder)
        assert graphs.run(self.steps(3)) is None
        assert graphs.run(self.steps(5)) is None
        assert graphs.sizes == []
        assert graphs.run(self.steps(4)) is not None
        assert graphs.sizes == [4]

    def test_padding_touches_no_page_of_a_sequence(self, load: Callable[..., LoadedModel], pool: CachePool) -> None:
        loaded, recorder = load(), Recorder()
        graphs = self.graphs(loaded, pool, recorder)
        graphs.run(self.steps(5))
        before = [tensor[:8].nan_to_num() for pair in pool.kv.values() for tensor in pair]
        logits = graphs.run(self.steps(5))
        after = [tensor[:8].nan_to_num() for pair in pool.kv.values() for tensor in pair]
        changed = {
            (page, token)
            for one, other in zip(before, after, strict=True)
            for page, token in (one != other).flatten(2).any(-1).nonzero().tolist()
        }
        assert changed == {(n, 3) for n in range(5)}
        expected = forward(loaded.model, lay_out(self.steps(5), page_tokens=16), pool)
        assert logits is not None
        assert torch.allclose(logits, expected, atol=1e-4)

    def test_a_replay_reads_and_writes_the_same_tensors(
        self, load: Callable[..., LoadedModel], pool: CachePool
    ) -> None:
        recorder = Recorder()
        graphs = self.graphs(load(), pool, recorder)
        graphs.run(self.steps(4))
        places = []
        for start in (3, 4, 5):
            logits = graphs.run(self.steps(4, start))
            assert logits is not None
            static, _ = graphs._recorded[4, 0]
            places.append((logits.data_ptr(), static.packed.data_ptr(), static.kv_length.data_ptr()))
            assert static.kv_length.tolist() == [start + 1] * 4
        assert len(set(places)) == 1
        assert logits.data_ptr() == recorder.outputs[0].data_ptr()

    def test_prompts_run_without(self, load: Callable[..., LoadedModel], pool: CachePool) -> None:
        graphs = self.graphs(load(), pool, Recorder())
        for _ in range(3):
            assert graphs.run([Segment([5, 6], 3, [0])]) is None
        assert graphs.sizes == []


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_text_after_an_image_is_decoded_by_graphs(tmp_path: Path, family: str) -> None:
    """Qwen's positions have three axes, and Gemma's images see each other, so that their prompts need a mask."""
    checkpoint = build(family, tmp_path / family)
    settings = {"load": {"dtype": "float32", "cpu_kernels": False}, "generation": {"max_new_tokens": 12}}
    loaded = llmctl.load(checkpoint, **settings)
    use_one_call(loaded)
    picture_of = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "hi"}]}]
    requests = [request_of(loaded, picture_of), make_request(loaded, Prompt((5, 6, 7)))]
    recorder = Recorder()
    assert answers(engine_of(loaded, recorder), requests) == answers(engine_of(loaded, None), requests)
    assert recorder.replays > 5


def test_a_step_that_cannot_be_recorded_runs_without(load: Callable[..., LoadedModel]) -> None:
    loaded = load()
    requests = requests_for(loaded, 3)
    engine = engine_of(loaded, Recorder(refuses=True))
    assert answers(engine, requests) == answers(engine_of(loaded, None), requests)
    assert engine._packed is not None
    assert engine._packed.graphs is not None
    assert engine._packed.graphs.failure == "operation not permitted when stream is capturing"


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("phi3_long", "its RoPE depends on the length of the sequence"),
        ("deepseek_v3", "its layers attend to keys that are gathered anew"),
    ],
)
def test_what_changes_with_the_length_is_not_recorded(
    load: Callable[..., LoadedModel], architecture: str, reason: str
) -> None:
    loaded, recorder = load(architecture), Recorder()
    engine = engine_of(loaded, recorder)
    answers(engine, requests_for(loaded, 3))
    assert engine._packed is not None
    assert engine._packed.graphs is not None
    assert engine._packed.graphs.failure == reason
    assert recorder.outputs == []


def test_divided_offloaded_and_int8_models_are_not_recorded(tiny_models: Callable[[str], Path]) -> None:
    """accelerate keeps offloaded weights on the meta device."""
    whole, divided = (llmctl.load(tiny_models("llama"), load={"cpu_kernels": False}).model for _ in range(2))
    divided.lm_head.to("meta")
    assert why_not_recorded(divided) == "it is on several devices"
    assert why_not_recorded(whole) is None
    whole.is_loaded_in_8bit = True
    assert why_not_recorded(whole) == "LLM.int8 looks for outliers in every pass"


@pytest.mark.parametrize("is_divided", [False, True])
def test_the_index_of_the_last_tokens_fits_the_device_of_the_head(
    tiny_models: Callable[[str], Path], is_divided: bool
) -> None:
    """Only an index on the CPU can select rows on any GPU; the hidden states are on the last one."""
    skip_without_pages()
    model = llmctl.load(tiny_models("llama"), load={"cpu_kernels": False}).model.to("meta")
    if is_divided:
        model.lm_head.to_empty(device="cpu")
    choose_attention(model, _Trusting(varlen_backends()[:1]))
    places = []

    def stop(_: Any, __: Any, options: dict[str, Any]) -> None:
        places.append(options["logits_to_keep"].device.type)
        raise InterruptedError

    model.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(InterruptedError):
        forward_modules(model, lay_out([Segment([5, 6], 0, [0])], page_tokens=256), CachePool(1, 256))
    assert places == ["cpu" if is_divided else "meta"]


def test_attention_that_goes_from_sequence_to_sequence_is_not_recorded(load: Callable[..., LoadedModel]) -> None:
    loaded = load()
    choose_attention(loaded.model, PagedAttention(replaces_kernels=True))
    engine = engine_of(loaded, Recorder())
    answers(engine, requests_for(loaded, 3))
    assert engine._packed is not None
    assert engine._packed.graphs is not None
    assert engine._packed.graphs.failure == "its attention goes from sequence to sequence"
    assert engine._packed.graphs.sizes == []


def test_graphs_are_recorded_again_when_states_move(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_pool, "_FIRST_ROWS", 2)
    loaded = load("lfm2")
    requests, recorder = requests_for(loaded, 7), Recorder()
    engine = engine_of(loaded, recorder)
    with_graphs = [*answers(engine, requests[:1]), *answers(engine, requests)]
    assert engine._packed is not None
    assert engine._packed.graphs is not None
    assert len(recorder.outputs) > len(engine._packed.graphs.sizes)
    engine = engine_of(loaded, None)
    assert with_graphs == [*answers(engine, requests[:1]), *answers(engine, requests)]


def test_an_emptied_cache_has_graphs_of_its_own(load: Callable[..., LoadedModel]) -> None:
    loaded = load()
    requests, recorder = requests_for(loaded, 2), Recorder()
    engine = engine_of(loaded, recorder)
    first = answers(engine, requests)
    recorded = len(recorder.outputs)
    engine.forget()
    assert answers(engine, requests) == first
    assert len(recorder.outputs) == 2 * recorded


def test_a_single_answer_on_a_gpu_goes_through_packed_passes(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmctl.generation.engine import engine

    loaded, recorder = load(), Recorder()
    request = requests_for(loaded, 1)[0]
    alone = answers(Engine(loaded, CAPACITY, single=True), [request])
    monkeypatch.setattr(engine, "is_on_gpu", lambda _: True)
    single = Engine(loaded, CAPACITY, single=True, recorder_for=lambda _: recorder)
    assert answers(single, [request]) == alone
    assert recorder.replays > 10


class _Copies(TorchDispatchMode):
    """Counts the tensors that are copied from the CPU to the model's device, single numbers excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu":
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            self.count += any(one.device.type == "cpu" and one.dim() for one in tensors)
        return result


class _Trusting(PagedAttention):
    def _can(self, backend: AttentionBackend, call: AttentionCall) -> bool:
        return backend.supports(call)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "gemma3", "gpt_oss", "mixtral", "qwen3_moe", "phi3", "gpt2", "lfm2", "qwen3_5"]
)
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(
    tiny_models: Callable[[str], Path], architecture: str
) -> None:
    """On the meta device, tensors have no values, so that whatever needs one fails, as in the recording of a graph."""
    skip_without_pages()
    loaded = llmctl.load(tiny_models(architecture), load={"dtype": "bfloat16", "cpu_kernels": False})
    model = loaded.model.to("meta")
    choose_attention(model, _Trusting(varlen_backends()[:1]))
    pool = CachePool(4, 256, slots=4, pads=True)
    forward_modules(model, lay_out([Segment([5, 6, 7], 0, [n], n) for n in range(4)], page_tokens=256), pool)
    layout = lay_out([Segment([5], 3, [n], n) for n in range(4)], page_tokens=256)
    with _Copies() as first:
        forward_modules(model, layout, pool)
    with _Copies() as again:
        logits = forward_modules(model, layout.on(model.device), pool)
    assert logits.shape[0] == 4
    assert logits.device.type == "meta"
    assert (first.count, again.count) == (1, 0)  # all tables of a pass in one copy
