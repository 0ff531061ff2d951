"""The engine on the card against `model.generate` and against float32 on the CPU, for small models of three kinds."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmctl.bench.gpu_check.reference import (
    Reference,
    compared,
    completions,
    logprob_differences,
    plain_answers,
    share_of_same,
)
from llmctl.bench.gpu_check.workplace import Workplace, attention_facts
from llmctl.bench.measure import Prompts
from llmctl.bench.task import Cell
from llmctl.config import StructureSection
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.structured.structure import make_structure

if TYPE_CHECKING:
    from llmctl.generation.request import Request
    from llmctl.loading.model import LoadedModel

_TOKENS = 32
_JSON_TOKENS = 200  # one for each letter, and for what may stand between
_LENGTHS = (3, 17, 40, 95, 150, 300, 600)  # of prompts: most are longer than the windows of 16 tokens
_ROOMY, _CHUNKED = EngineCapacity(64, 4096, 16384), EngineCapacity(4, 48, 4096)
_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50}
_SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["card", "driver"]}, "works": {"type": "boolean"}},
    "required": ["kind", "works"],
    "additionalProperties": False,
}


def llama(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Compare a Llama."""
    yield from _compare(workplace, "llama")


def gemma2(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Compare a Gemma 2: windows and softcap."""
    yield from _compare(workplace, "gemma2")


def gpt_oss(workplace: Workplace) -> Iterator[dict[str, Any]]:
    """Compare a gpt-oss: windows, sinks and experts."""
    yield from _compare(workplace, "gpt_oss")


def _compare(workplace: Workplace, name: str) -> Iterator[dict[str, Any]]:
    """Compare a small model; each comparison is a result."""
    good = count = 0
    loaded = workplace.load(name, load={"dtype": workplace.dtype})
    for title, result in _comparisons(workplace, loaded, Reference(workplace.checkpoint(name))):
        count, good = count + 1, good + result.get("ok", True)
        yield {title: result}
    facts = attention_facts(loaded)
    yield {"attention": facts}
    packed = ", ".join(facts["packed"]) or facts["implementation"]
    workplace.headline = f"{good} of {count} comparisons agree; attention by {packed}"


def _comparisons(
    workplace: Workplace, loaded: "LoadedModel", reference: Reference
) -> Iterator[tuple[str, dict[str, Any]]]:
    requests = _requests(loaded, tiny=workplace.tiny)
    plain = plain_answers(loaded.model, requests)
    engine = Engine(loaded, _ROOMY)
    packed = completions(engine, requests)
    tokens = [answer.token_ids for answer in packed]
    yield "against generate", compared(reference, requests, plain, tokens)
    yield "log-probabilities", logprob_differences(reference, packed)
    chunked = completions(Engine(loaded, _CHUNKED), requests)
    yield "prompts in chunks", compared(reference, requests, tokens, [answer.token_ids for answer in chunked])
    yield "prefix hits", _prefix_hits(engine, reference, requests, tokens)
    alone = [completions(Engine(loaded, _ROOMY), [request])[0] for request in requests]
    yield "independence of the batch", compared(reference, requests, [one.token_ids for one in alone], tokens)
    yield from _sampled(loaded, requests)
    yield "structure", _structured(loaded, requests[1])


def _prefix_hits(
    engine: Engine, reference: Reference, requests: "list[Request]", tokens: list[tuple[int, ...]]
) -> dict[str, Any]:
    """Ask the same again: most of each prompt is in the prefix cache."""
    before = engine.prefilled_tokens
    again = completions(engine, requests)
    computed, whole = engine.prefilled_tokens - before, sum(len(request.prompt) for request in requests)
    result = compared(reference, requests, tokens, [answer.token_ids for answer in again])
    return {**result, "computed": computed, "prompt_tokens": whole, "ok": result["ok"] and computed < whole / 2}


def _sampled(loaded: "LoadedModel", requests: "list[Request]") -> Iterator[tuple[str, dict[str, Any]]]:
    """Compare sampled answers: with the same seeds twice, alone and together, and with other seeds."""
    sampled = [
        replace(request, arguments={**request.arguments, **_SAMPLING}, seed=number)
        for number, request in enumerate(requests)
    ]
    first = completions(Engine(loaded, _ROOMY), sampled)
    yield "the same seeds", share_of_same(first, completions(Engine(loaded, _ROOMY), sampled), least=1.0)
    alone = [completions(Engine(loaded, _ROOMY), [request])[0] for request in sampled]
    yield "seeds alone and together", share_of_same(first, alone, least=0.5)
    other = completions(Engine(loaded, _ROOMY), [replace(request, seed=request.seed + 1000) for request in sampled])
    differ = sum(a.token_ids != b.token_ids for a, b in zip(first, other, strict=True))
    yield "other seeds", {"differ": differ, "of": len(first), "ok": differ == len(first)}


def _structured(loaded: "LoadedModel", request: "Request") -> dict[str, Any]:
    """Ask for JSON of a schema, alone in the batch with a free answer."""
    if find_spec("llguidance") is None:
        return {"skipped": "llguidance is not installed"}
    structure = make_structure(StructureSection(json_schema=_SCHEMA))
    ends = {"eos_token_id": list(loaded.eos_token_ids)}
    asking = replace(
        request,
        structure=structure,
        arguments={**request.arguments, **ends, "max_new_tokens": _JSON_TOKENS},
        budget=_JSON_TOKENS,
        logprobs=None,
    )
    answer, _ = completions(Engine(loaded, _ROOMY), [asking, request])
    try:
        value = json.loads(answer.text)
    except ValueError:
        value = None
    good = isinstance(value, dict) and value.get("kind") in ("card", "driver") and isinstance(value.get("works"), bool)
    return {"text": answer.text[:80], "ok": good}


def _requests(loaded: "LoadedModel", *, tiny: bool) -> "list[Request]":
    """Return greedy requests of different lengths that record log-probabilities."""
    prompts, tokens = Prompts(loaded, seed=3), 8 if tiny else _TOKENS
    lengths = _LENGTHS[1:5] if tiny else _LENGTHS
    requests = [prompts.requests(Cell(length, 1), tokens)[0] for length in lengths]
    return [replace(request, logprobs=0) for request in requests]
