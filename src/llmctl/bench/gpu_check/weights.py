"""Quantised weights, memory that runs out, and weights that do not fit on the card."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmctl.bench.gpu_check.workplace import SkippedError, Workplace, rounded
from llmctl.bench.measure import Prompts, measure_cell
from llmctl.bench.task import Cell
from llmctl.config import Config
from llmctl.errors import MachineError
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, engine_for_many, engine_for_one
from llmctl.loading.device_memory import release_memory
from llmctl.plan import PlanRequest, make_plan
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.request import Request
    from llmctl.loading.model import LoadedModel

_SPILLED_SHARE = 0.25  # of the weights, which stay in RAM


def quantised(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Quantise to 8 and 4 bits, keep the result, and load it again: bytes, seconds, speed, and the same tokens."""
    lines = []
    for bits in (8, 4):
        began = time.perf_counter()
        first = _answer_with(workplace, bits=bits)
        again = _answer_with(workplace, bits=bits)
        same = first["tokens"] == again.pop("tokens")
        del first["tokens"]
        yield {
            f"{bits} bits": {
                "first": rounded(first),
                "again": rounded(again),
                "seconds": rounded(time.perf_counter() - began),
                "same_tokens": same,
                "ok": same and again["from_cache"],
            }
        }
        lines.append(f"{bits} bits: {format_bytes(again['bytes'])}, loaded again in {again['load_seconds']:.1f} s")
    workplace.headline = "; ".join(lines)


def _answer_with(workplace: Workplace, *, bits: int) -> dict[str, Any]:
    """Load the large model in 8 or 4 bits, answer, drop it, and return what was measured."""
    try:
        loaded = workplace.load("large", quantization={"bits": bits})
    except MachineError as error:
        if find_spec("bitsandbytes") is None:
            raise SkippedError(error.message) from error
        raise
    [request] = _requests(loaded, workplace, batch=1)
    tokens = _tokens(engine_for_one(loaded, request), [request])
    cell = measure_cell(engine_for_one(loaded, request), Cell(len(request.prompt), 1), [request])
    facts = {
        "tokens": tokens,
        "kind": loaded.measured.quantization,
        "bytes": sum(loaded.measured.device_bytes.values()),
        "planned_bytes": sum(loaded.plan.memory.weights.values()),
        "load_seconds": loaded.measured.load_seconds,
        "decode_tokens_per_second": cell["decode_tokens_per_second"],
        "from_cache": loaded.plan.quantized_cache is not None,
    }
    del loaded
    release_memory()
    return facts


def out_of_memory(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Let memory run out while the engine takes its KV cache: answers must be the same, with a smaller cache."""
    loaded = workplace.load("large", load={"cpu_kernels": False})
    requests = _requests(loaded, workplace, batch=4)
    expected = _tokens(engine_for_many(loaded), requests)
    engine = engine_for_many(loaded)
    planned = engine.token_limit(requests[0])
    release_memory()
    with _little_memory(workplace, loaded):
        tokens = _tokens(engine, requests)
    now = engine.kv_tokens
    agreement = _agreement(expected, tokens)
    yield {
        "engine": {
            "planned_tokens": planned,
            "tokens_at_the_end": now,
            **agreement,
            "ok": agreement["ok"] and now < (planned or 0),
        }
    }
    yield {"afterwards": _agreement(expected, _tokens(engine_for_many(loaded), requests))}
    workplace.headline = f"a KV cache for {planned} tokens did not fit; it went on with one for {now}"


@contextmanager
def _little_memory(workplace: Workplace, loaded: "LoadedModel") -> Iterator[None]:
    """Let torch have little more memory than it uses now. On the CPU, let one pass of the model fail instead."""
    import torch

    if workplace.tiny:
        failures = [torch.OutOfMemoryError("CUDA out of memory, as if")]

        def fail(*_: Any) -> None:
            if failures:
                raise failures.pop()

        hook = loaded.model.register_forward_pre_hook(fail)
        try:
            yield
        finally:
            hook.remove()
        return
    _, total = torch.cuda.mem_get_info(workplace.device)
    allowed = torch.cuda.memory_reserved(workplace.device) + total // 50
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), workplace.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, workplace.device)


def spill(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Keep a quarter of the weights in RAM beside the card: the same tokens, at what speed?"""
    if workplace.tiny:
        yield from _planned_spill(workplace)
        return
    whole = workplace.load("large")
    requests = _requests(whole, workplace, batch=1, tokens=8)
    expected, weights = _tokens(engine_for_many(whole), requests), sum(whole.plan.memory.weights.values())
    allowed = int(weights * (1 - _SPILLED_SHARE))
    del whole
    release_memory()
    loaded = workplace.load("large", load={"max_memory": {0: allowed}})
    engine = engine_for_many(loaded)
    tokens = _tokens(engine, requests)
    cell = measure_cell(engine, Cell(len(requests[0].prompt), 1), requests)
    bytes_by_device = dict(loaded.plan.memory.weights)
    yield {
        "bytes": bytes_by_device,
        "decode_tokens_per_second": rounded(cell["decode_tokens_per_second"]),
        "spilled": {"is_split": loaded.plan.is_split, "ok": loaded.plan.is_split},
        "answer": _agreement(expected, tokens),
    }
    in_ram = format_bytes(bytes_by_device.get("cpu", 0))
    workplace.headline = f"{in_ram} in RAM: {cell['decode_tokens_per_second'] or 0:.3g} tokens/s"


def _planned_spill(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Without a card, plan the same for one that has too little memory."""
    from llmctl.machine.presets import preset_machine
    from llmctl.model.info import read_model_info

    info = read_model_info(workplace.checkpoint("large"), source="large")
    machine = preset_machine("rtx4090")
    config = Config.model_validate({"load": {"max_memory": {0: "150KB"}}})
    plan = make_plan(PlanRequest(config, machine, info))
    yield {"bytes": dict(plan.memory.weights), "spilled": {"is_split": plan.is_split, "ok": plan.is_split}}
    workplace.headline = "planned only"


def _requests(loaded: "LoadedModel", workplace: Workplace, *, batch: int, tokens: int | None = None) -> "list[Request]":
    cell = Cell(workplace.sizes.prompt_tokens, batch)
    return Prompts(loaded, seed=1).requests(cell, tokens or workplace.sizes.new_tokens)


def _agreement(expected: Sequence[tuple[int, ...]], found: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Compare answers of a model with random weights, where near ties are common: first tokens must be the same."""
    same = sum(one == other for one, other in zip(expected, found, strict=True))
    first = sum(one[0] == other[0] for one, other in zip(expected, found, strict=True))
    return {"same_answers": same, "same_first_tokens": first, "of": len(expected), "ok": first == len(expected)}


def _tokens(engine: Engine, requests: "Sequence[Request]") -> list[tuple[int, ...]]:
    """Return the tokens of every answer. Raise the error of one that failed."""
    found = dict(engine.run(enumerate(requests)))
    for answer in found.values():
        if not isinstance(answer, Completion):
            raise answer
    return [found[number].token_ids for number in range(len(requests))]
