"""Load time and memory, and the speed of one answer, of long prompts and of many sequences, against transformers."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmctl.bench.bounds import copy_bandwidth
from llmctl.bench.gpu_check.workplace import SkippedError, Workplace, attention_facts, rounded
from llmctl.bench.measure import Prompts, measure_cell
from llmctl.bench.task import Cell
from llmctl.generation.engine import Engine, engine_for_many, engine_for_one
from llmctl.generation.engine.capacity import engine_capacity
from llmctl.generation.request import NO_TOKEN
from llmctl.loading.device_memory import release_memory
from llmctl.machine.detection import measure_ram_bandwidth
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.request import Request
    from llmctl.loading.model import LoadedModel

_WARM_UP_TOKENS = 4
_PLANNED_WITHIN = 0.1  # of the planned weights


def load(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Load the large model, and compare the planned memory with what torch allocated and reserved."""
    import torch

    loaded = workplace.large()
    device = str(workplace.device)
    planned, allocated = sum(loaded.plan.memory.weights.values()), sum(loaded.measured.device_bytes.values())
    yield rounded(
        {
            "load_seconds": loaded.measured.load_seconds,
            "dtype": loaded.measured.dtype,
            "weights": {
                "planned_bytes": planned,
                "allocated_bytes": allocated,
                "ok": abs(planned - allocated) <= _PLANNED_WITHIN * planned,
            },
            "planned_bytes": loaded.plan.memory.total_bytes,
            "environment": dict(loaded.plan.environment),
        }
    )
    [request] = _requests(loaded, prompt=workplace.sizes.prompt_tokens, batch=1, tokens=workplace.sizes.new_tokens)
    measure_cell(engine_for_one(loaded, request), Cell(len(request.prompt), 1), [request])
    if not workplace.tiny:
        free, total = torch.cuda.mem_get_info(workplace.device)
        reserved = torch.cuda.memory_reserved(workplace.device)
        yield {"after an answer": {"reserved_bytes": reserved, "used_on_the_card_bytes": total - free}}
    workplace.headline = (
        f"{loaded.measured.load_seconds:.1f} s, {loaded.measured.attn_implementation}; weights planned "
        f"{format_bytes(planned)}, allocated {format_bytes(allocated)} on {device}"
    )


def single_stream(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Measure one answer in each mode, in tokens per second and as a share of the bound by the bandwidth."""
    loaded = workplace.large()
    bandwidth = measure_ram_bandwidth() if workplace.tiny else copy_bandwidth(str(workplace.device))
    read = _bytes_per_token(loaded)
    yield rounded({"bandwidth": bandwidth, "bytes_per_token": read, "bound": bandwidth / read})
    rates: dict[str, float] = {}
    for mode, measure in _modes(workplace, loaded).items():
        rate, facts = measure()
        rates[mode] = rate
        yield {mode: rounded({"tokens_per_second": rate, "share_of_bound": rate * read / bandwidth, **facts})}
    best = max(rates, key=rates.__getitem__)
    workplace.headline = f"{best}: {rates[best]:.4g} tokens/s, {rates[best] * read / bandwidth:.0%} of the bound"


def _modes(workplace: Workplace, loaded: "LoadedModel") -> dict[str, Callable[[], tuple[float, dict[str, Any]]]]:
    """Return a function for each way to generate one answer, which returns its tokens per second and further facts."""
    from dataclasses import replace

    tokens, prompt = workplace.sizes.new_tokens, workplace.sizes.prompt_tokens

    def in_engine(make: Callable[[], Engine], **arguments: Any) -> tuple[float, dict[str, Any]]:
        rate, engine = 0.0, make()
        for count in (_WARM_UP_TOKENS, tokens):  # first, what is compiled and recorded once
            [request] = _requests(loaded, prompt=prompt, batch=1, tokens=count)
            request = replace(request, arguments={**request.arguments, **arguments})
            rate = float(measure_cell(engine, Cell(prompt, 1), [request])["decode_tokens_per_second"])
        return rate, {} if engine.graphs is None else {"graphs": _graph_facts(engine)}

    def packed(**options: Any) -> Engine:
        return Engine(loaded, engine_capacity(loaded, sequences=1), **options)

    static: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
    return {
        "transformers": lambda: (_plain_rate(loaded, prompt=prompt, tokens=tokens), {}),
        "without graphs": lambda: in_engine(lambda: packed(recorder_for=lambda _: None)),
        "with graphs": lambda: in_engine(packed),
        "as one answer": lambda: in_engine(lambda: packed(single=True)),
        "static cache": lambda: in_engine(lambda: packed(single=True), **static),
    }


def _plain_rate(loaded: "LoadedModel", *, prompt: int, tokens: int) -> float:
    """Return the tokens per second of `model.generate`, without the time to the first token."""
    import torch
    from transformers import GenerationConfig

    [request] = _requests(loaded, prompt=prompt, batch=1, tokens=tokens)
    ids = torch.tensor([request.prompt.ids], device=loaded.model.device)

    def seconds(count: int) -> float:
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=[NO_TOKEN], pad_token_id=0)
        began = time.perf_counter()
        loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
        return time.perf_counter() - began

    seconds(_WARM_UP_TOKENS)
    first, all_of_them = seconds(1), seconds(tokens)
    return (tokens - 1) / max(all_of_them - first, 1e-9)


def _bytes_per_token(loaded: "LoadedModel") -> int:
    """Return the bytes of weights that a token reads: all but an embedding that is not the head as well."""
    model = loaded.model
    weights = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight.data_ptr() != embedding.weight.data_ptr():
        del weights[embedding.weight.data_ptr()]
    return sum(weights.values())


def long_prompts(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Measure the time to the first token and the peak memory of long prompts."""
    import torch

    loaded, lines = workplace.large(), []
    for length in workplace.sizes.long_prompts:
        if not workplace.tiny:
            torch.cuda.reset_peak_memory_stats(workplace.device)
        requests = _requests(loaded, prompt=length, batch=1, tokens=_WARM_UP_TOKENS)
        cell = measure_cell(engine_for_many(loaded, sequences=1), Cell(length, 1), requests)
        peak = 0 if workplace.tiny else torch.cuda.max_memory_allocated(workplace.device)
        cell["peak_bytes"] = peak
        yield {f"{length} tokens": rounded(cell)}
        lines.append(f"{length} tokens in {cell['first_token_seconds']:.2f} s, {format_bytes(peak)}")
    workplace.headline = "; ".join(lines)


def many_sequences(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Measure the engine with growing numbers of concurrent sequences."""
    loaded, sizes, lines = workplace.large(), workplace.sizes, []
    engine = engine_for_many(loaded)
    for batch in sizes.batches:
        cell = Cell(sizes.prompt_tokens, batch)
        measure_cell(engine, cell, _requests(loaded, prompt=8, batch=batch, tokens=_WARM_UP_TOKENS))
        prompts = _requests(loaded, prompt=sizes.prompt_tokens, batch=batch, tokens=sizes.new_tokens)
        measured = measure_cell(engine, cell, prompts)
        measured["tokens_per_second"] = measured["new_tokens"] / measured["seconds"]
        yield {f"{batch} sequences": rounded(measured)}
        lines.append(f"{batch}: {measured['tokens_per_second']:.4g}")
    yield {"attention": attention_facts(loaded), "graphs": _graph_facts(engine)}
    workplace.headline = f"tokens/s with prompts of {sizes.prompt_tokens} tokens, {', '.join(lines)}"


def _graph_facts(engine: Engine) -> dict[str, Any]:
    """Return the sizes of batch that were recorded as graphs, and why others were not."""
    graphs = engine.graphs
    return {"sizes": graphs.sizes, "failure": graphs.failure} if graphs is not None else {"sizes": []}


def generate_batch(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Measure transformers' continuous batching with the same prompts and answers as `many sequences`."""
    loaded, sizes, lines = workplace.large(), workplace.sizes, []
    if not hasattr(loaded.model, "generate_batch"):
        raise SkippedError("this transformers has no generate_batch")
    if workplace.tiny:
        loaded.model.set_attn_implementation("sdpa")  # it does not know that of llmctl's kernels
    release_memory()  # it takes a share of what the driver calls free
    for batch in sizes.batches:
        requests = _requests(loaded, prompt=sizes.prompt_tokens, batch=batch, tokens=sizes.new_tokens)
        measured = _continuous_batching(loaded, requests, tokens=sizes.new_tokens, tiny=workplace.tiny)
        yield {f"{batch} sequences": rounded(measured)}
        lines.append(f"{batch}: {measured['tokens_per_second']:.4g}")
    workplace.headline = f"tokens/s with the same prompts, {', '.join(lines)}"


def _continuous_batching(
    loaded: "LoadedModel", requests: "list[Request]", *, tokens: int, tiny: bool
) -> dict[str, Any]:
    """Return the speed of `generate_batch`, from the first request that is added to the last token."""
    import inspect

    from transformers import GenerationConfig

    model: Any = loaded.model
    known = inspect.signature(model.generate_batch).parameters
    options: dict[str, Any] = {"progress_bar": False, "record_timestamps": True}
    if tiny:  # by default its cache takes most of the RAM
        from transformers import ContinuousBatchingConfig

        options["continuous_batching_config"] = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    began = time.perf_counter()
    answers = model.generate_batch(
        inputs=[list(request.prompt.ids) for request in requests],
        generation_config=GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
        **{name: value for name, value in options.items() if name in known},
    )
    whole = time.perf_counter() - began
    outputs = list(answers.values())
    count = sum(len(output.generated_tokens) for output in outputs)
    times = [stamp for output in outputs for stamp in getattr(output, "timestamps", None) or ()]
    starts = [output.created_time for output in outputs if hasattr(output, "created_time")]
    # without the capture of CUDA graphs, which a server does once
    seconds = max(times) - min(starts) if times and starts else whole
    return {"tokens_per_second": count / seconds, "new_tokens": count, "seconds": seconds, "with_start_seconds": whole}


def _requests(loaded: "LoadedModel", *, prompt: int, batch: int, tokens: int) -> "list[Request]":
    """Return greedy requests that end only at their token limit; the same ones at every call."""
    return Prompts(loaded, seed=batch).requests(Cell(prompt, batch), tokens)
