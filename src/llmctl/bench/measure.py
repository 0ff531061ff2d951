"""The measurement of one configuration in a child process: load, warm up, and every cell of the task."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.bench.contender import pinned
from llmctl.bench.task import ONE_BY_ONE, Cell, Task
from llmctl.config import Config, Settings
from llmctl.errors import LlmctlError
from llmctl.generation.engine import Engine, engine_for_many, engine_for_one
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import NO_TOKEN, Request
from llmctl.loading.loader import load_prepared
from llmctl.loading.model import LoadedModel
from llmctl.loading.prepare import Prepared, prepare
from llmctl.machine.child_process import WriteJson
from llmctl.machine.detection import cuda_device
from llmctl.platform_support import peak_memory_bytes, process_status_bytes

# An end token that no vocabulary has, so that only the token limit ends an answer.
_WARM_UP_TOKENS = 4


def job(prepared: Prepared, task: Task) -> dict[str, Any]:
    """Return the arguments of `say_run` as JSON."""
    return {
        "config": pinned(prepared).model_dump(mode="json", exclude_unset=True),
        "cells": [[cell.prompt_tokens, cell.batch] for cell in task.cells],
        "new_tokens": task.new_tokens,
        "seed": task.seed,
    }


def say_run(
    say: WriteJson, *, config: dict[str, Any], cells: list[tuple[int, int]], new_tokens: int, seed: int
) -> None:
    """Load, warm up and measure. Report `loaded`, then `begun` and `cell` for each cell, then `ended`.

    Raises:
        LlmctlError: the same errors as in `load` and `generate`.
    """
    todo = [Cell(*cell) for cell in cells]
    shortest, longest = (choose(cell.prompt_tokens for cell in todo) for choose in (min, max))
    settings = Settings(Config.model_validate(config))
    batch = max(cell.batch for cell in todo)
    loaded = load_prepared(prepare(settings, offline=True, context=longest + new_tokens, batch=batch))
    prompts = Prompts(loaded, seed)
    say(loaded=_loaded_facts(loaded))
    many = engine_for_many(loaded) if batch > 1 else None

    def measure(cell: Cell, tokens: int) -> dict[str, Any]:
        requests = prompts.requests(cell, tokens)
        return measure_cell(many if many and cell.batch > 1 else engine_for_one(loaded, requests[0]), cell, requests)

    cold = measure(Cell(shortest, 1), _WARM_UP_TOKENS)
    if many is not None:
        measure(Cell(shortest, 2), _WARM_UP_TOKENS)
    for cell in todo:
        say(begun=True)
        say(cell=measure(cell, new_tokens))
    say(ended={**memory_bytes(), "cold_first_token_seconds": cold["first_token_seconds"]})


def _loaded_facts(loaded: LoadedModel) -> dict[str, Any]:
    measured = loaded.measured
    return {
        "load_seconds": measured.load_seconds,
        "dtype": measured.dtype,
        "attn_implementation": measured.attn_implementation,
        "quantization": measured.quantization,
        "device_bytes": dict(measured.device_bytes),
        "parameters": measured.parameters,
        **memory_bytes(),
    }


def memory_bytes() -> dict[str, Any]:
    """Return the memory of this process: `resident_bytes`, `anonymous_bytes` (without pages of files), peak, GPUs."""
    import torch

    peaks = {}
    if torch.cuda.is_available():
        peaks = {cuda_device(n): torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count())}
    return {
        "resident_bytes": process_status_bytes("VmRSS"),
        "anonymous_bytes": process_status_bytes("RssAnon"),
        "peak_memory_bytes": peak_memory_bytes(),
        "gpu_peak_bytes": peaks,
    }


class Prompts:
    """Makes prompts of random tokens, without control tokens. Its state: the random generator."""

    def __init__(self, loaded: LoadedModel, seed: int) -> None:
        tokenizer = loaded.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *loaded.eos_token_ids}
        known = min(len(tokenizer), int(loaded.model.config.get_text_config().vocab_size))
        self._ordinary = [token for token in range(known) if token not in special]
        self._random = random.Random(seed)  # noqa: S311 (prompts, not secrets)
        sampling = loaded.plan.generation.arguments
        faster = {name: value for name, value in loaded.plan.generation_kwargs.items() if name not in sampling}
        self._arguments = {
            **faster,
            **loaded.special_token_arguments(),
            "eos_token_id": [NO_TOKEN],
            "do_sample": False,
        }

    def requests(self, cell: Cell, new_tokens: int) -> list[Request]:
        """Return new requests for a cell."""
        drawn = (self._random.choices(self._ordinary, k=cell.prompt_tokens) for _ in range(cell.batch))
        return [self.request(ids, new_tokens) for ids in drawn]

    def request(self, ids: Sequence[int], new_tokens: int) -> Request:
        """Return a greedy request that ends only at its token limit."""
        return Request(
            prompt=Prompt(tuple(ids)),
            arguments={**self._arguments, "max_new_tokens": new_tokens},
            seed=0,
            budget=new_tokens,
            stop_strings=(),
        )


@dataclass(frozen=True)
class _Step:
    """One step of the engine: duration, prompt tokens prefilled, tokens generated, and running requests."""

    seconds: float
    prefilled: int
    generated: int
    running: int


def measure_cell(engine: Engine, cell: Cell, requests: Sequence[Request]) -> dict[str, Any]:
    """Return the measurements of one cell.

    The prefill rate is that of the steps with prompt tokens. The time to the first token ends when every sequence has
    one. The decode rate is that of the other steps in which the maximum number of sequences was running.
    """
    steps = _steps(engine, requests)
    last_prefill = max(number for number, step in enumerate(steps) if step.prefilled)
    prefills = [step for step in steps if step.prefilled]
    most = max(step.running for step in steps)
    full = [step for step in steps if step.generated and not step.prefilled and step.running == most]
    return {
        "prompt_tokens": cell.prompt_tokens,
        "batch": cell.batch,
        "first_token_seconds": sum(step.seconds for step in steps[: last_prefill + 1]),
        "prefill_tokens_per_second": sum(s.prefilled for s in prefills) / sum(s.seconds for s in prefills),
        "decode_tokens_per_second": sum(s.generated for s in full) / sum(s.seconds for s in full) if full else None,
        "new_tokens": sum(step.generated for step in steps),
        "seconds": sum(step.seconds for step in steps),
        "through": "engine" if most > 1 else "generate" if cell.batch == 1 else ONE_BY_ONE,
    }


def _steps(engine: Engine, requests: Sequence[Request]) -> list[_Step]:
    """Answer requests and return the steps. Raise the error of a request that fails."""
    for number, request in enumerate(requests):
        engine.add(number, request)
    steps: list[_Step] = []
    while engine.is_busy:
        prefilled, generated, running = engine.prefilled_tokens, engine.generated_tokens, engine.running
        started = time.perf_counter()
        events = engine.step()
        seconds = time.perf_counter() - started
        if error := next((event.end for event in events if isinstance(event.end, LlmctlError)), None):
            raise error
        prefilled, generated = engine.prefilled_tokens - prefilled, engine.generated_tokens - generated
        steps.append(_Step(seconds, prefilled, generated, running=max(running, engine.running)))
    return steps
