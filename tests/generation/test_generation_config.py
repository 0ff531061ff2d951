"""The model's generation_config.json: each setting acts the same on every path, or on none, and never breaks an answer.

`make generation-configs` prints the outcome of every case on every path.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import llmctl
from llmctl.generation.batch.answers import generate_batch
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.engine import engine_for_many
from llmctl.generation.prompt import Prompt, encode_prompt
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.model import LoadedModel
from llmctl.model.generation_fields import FIELDS
from llmctl.server.app import make_app
from llmctl.server.registry import ModelRegistry
from llmctl.server.worker import Worker
from support.generation_config import with_generation_config

PROMPT = "the capital of france"
COUNT = 8
_WRITES_TABLE = bool(os.environ.get("LLMCTL_GENERATION_TABLE"))
SAMPLED = {"do_sample": True, "temperature": 2.0}
# Cases that leave an answer as it is, and that are therefore not reported.
WITHOUT_EFFECT = {
    "do_sample with temperature 0", "do_sample with a tiny temperature", "temperature without do_sample",
    "renormalize_logits", "pad_token_id and bos_token_id", "null values",
}  # fmt: skip


class Answered(NamedTuple):
    """The text of an answer, and its end."""

    text: str
    ends: bool


class Case(NamedTuple):
    """A content of generation_config.json, and its equivalent for transformers (None: no file)."""

    content: Any
    same_as: dict[str, Any] | None


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, tiny_models: Callable[[str], Path]) -> LoadedModel:
    generation = {"max_new_tokens": COUNT}
    return llmctl.load(tiny_models("llama"), load={"dtype": request.param}, generation=generation, seed=42)


@pytest.fixture(autouse=True)
def _templates_without_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render the template, which is this repository's own, in this process: there are a thousand prompts."""
    monkeypatch.setattr("llmctl.generation.prompt.run_bounded_each", lambda works: [work() for work in works])
    monkeypatch.setattr("llmctl.model.tokenizer.run_bounded", lambda work: work())


# -- the paths


def _generate(loaded: LoadedModel) -> Answered:
    done = llmctl.generate(loaded, PROMPT)
    return Answered(done.text, done.finish_reason != "length")


def _batch(loaded: LoadedModel) -> Answered:
    first, second = generate_batch(loaded, [PROMPT, PROMPT])
    assert first.text == second.text
    assert first.completion is not None
    return Answered(first.text, first.completion.finish_reason != "length")


def _chat(loaded: LoadedModel) -> Answered:
    session = ChatSession(loaded)
    text = "".join(piece.text for piece in session.stream(PROMPT))
    assert session.last is not None
    assert session.last.completion is not None
    return Answered(text, session.last.completion.finish_reason != "length")


@contextmanager
def serving(loaded: LoadedModel) -> Iterator[Callable[[LoadedModel], Answered]]:
    """Yield the path through a server whose worker, renderer and routes are shared by all cases."""
    import httpx2

    worker = Worker(loaded, max_queue=4)
    renderer = ModelRegistry("tiny", loaded, worker, 1, 60.0).prompts
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    renderer.start()
    worker.start()

    async def ask(configured: LoadedModel) -> Any:
        registry = ModelRegistry("tiny", configured, worker, 1, 60.0)
        registry.__dict__["prompts"] = renderer
        transport = httpx2.ASGITransport(app=make_app(registry, drain_seconds=2))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def answer(configured: LoadedModel) -> Answered:
        choice = asyncio.run(ask(configured))
        return Answered(choice["message"]["content"], choice["finish_reason"] != "length")

    yield answer
    asyncio.run(worker.drain(5))
    renderer.close()


def transformers_answer(loaded: LoadedModel, settings: dict[str, Any]) -> Answered:
    """Return the answer of transformers' own generate with these settings."""
    import torch
    from transformers import GenerationConfig, set_seed

    ids = torch.tensor([encode_prompt(loaded.tokenizer, PROMPT, loaded.config.chat).ids])
    ends = {"eos_token_id": [*loaded.eos_token_ids, *settings.get("eos_token_id", ())]}
    arguments = {"max_new_tokens": COUNT, "pad_token_id": 0, **settings, **ends}
    set_seed(loaded.plan.seed)
    output = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(**arguments),
        tokenizer=loaded.tokenizer,
    )
    tokens = output[0, ids.shape[1] :].tolist()
    if tokens[-1] in ends["eos_token_id"]:
        return Answered(loaded.tokenizer.decode(tokens[:-1], skip_special_tokens=True), True)
    text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    stop = next((stop for stop in settings.get("stop_strings", ()) if stop in text), None)
    return Answered(text, False) if stop is None else Answered(text.partition(stop)[0], True)


# -- the cases


def honoured(loaded: LoadedModel) -> Iterator[tuple[str, Case]]:
    """Yield the cases in which the file changes the answer."""
    plain = llmctl.generate(loaded, PROMPT)
    first, third, text = plain.token_ids[0], plain.token_ids[2], plain.text
    stop, end = text[2:4], {"eos_token_id": [third]}

    def same(name: str, content: dict[str, Any], equivalent: dict[str, Any] | None = None) -> tuple[str, Case]:
        return name, Case(content, equivalent or content)

    yield same("stop_strings, a list", {"stop_strings": [stop, "nowhere"]})
    yield same("stop_strings, one text", {"stop_strings": stop}, {"stop_strings": [stop]})
    yield same("stop_strings, one is empty", {"stop_strings": [stop, ""]}, {"stop_strings": [stop]})
    yield same("eos_token_id, a list", end)
    yield same("eos_token_id as text", {"eos_token_id": str(third)}, end)
    yield same("eos_token_id, a list of texts", {"eos_token_id": [str(third), "x"]}, end)
    yield same("eos_token_id, some out of range", {"eos_token_id": [10**9, -1, third, None, 2**70]}, end)
    yield same("do_sample", SAMPLED)
    yield same("numbers as text", {"do_sample": "true", "temperature": "2.0", "top_k": "7"}, {**SAMPLED, "top_k": 7})
    yield same("integers for fractions", {"do_sample": 1, "temperature": 2, "top_k": 7.0}, {**SAMPLED, "top_k": 7})
    yield same("top_k -1", {**SAMPLED, "top_k": -1}, {**SAMPLED, "top_k": 0})
    for name, value in (
        ("top_k", 3), ("top_p", 0.3), ("min_p", 0.5), ("typical_p", 0.2), ("top_h", 0.2), ("epsilon_cutoff", 0.02),
        ("eta_cutoff", 0.5),
    ):  # fmt: skip
        yield same(name, {**SAMPLED, name: value})
    yield same("temperature 0.001", {"do_sample": True, "temperature": 0.001, "repetition_penalty": 1.9})
    yield same("repetition_penalty", {"repetition_penalty": 1.9})
    yield same("repetition_penalty, an integer", {"repetition_penalty": 2}, {"repetition_penalty": 2.0})
    yield same("no_repeat_ngram_size", {"no_repeat_ngram_size": 1, "bad_words_ids": [[first]]})
    yield same("min_new_tokens", {**end, "min_new_tokens": 5})
    yield same("min_length", {**end, "min_length": 24})
    yield same("min_length above the limits", {**end, "min_length": 4000}, {**end, "min_new_tokens": COUNT})
    yield same("bad_words_ids", {"bad_words_ids": [[first], [third, first]]})
    yield same("bad_words_ids, one out of range", {"bad_words_ids": [[first], [10**6]]}, {"bad_words_ids": [[first]]})
    yield same("suppress_tokens", {"suppress_tokens": [first, third]})
    yield same("begin_suppress_tokens", {"begin_suppress_tokens": [first]})
    yield same("sequence_bias, a list", {"sequence_bias": [[[first], -90.0]]})
    yield same(
        "sequence_bias, a mapping", {"sequence_bias": {f"({first},)": -90}}, {"sequence_bias": [[[first], -90.0]]}
    )
    yield same("remove_invalid_values", {"remove_invalid_values": True, "suppress_tokens": [first]})


def unchanged(loaded: LoadedModel) -> Iterator[tuple[str, Case]]:
    """Yield the cases in which the file does not change the answer."""
    token = llmctl.generate(loaded, PROMPT).token_ids[0]
    contents: dict[str, Any] = {
        "do_sample with temperature 0": {"do_sample": True, "temperature": 0},
        "do_sample with a tiny temperature": {"do_sample": True, "temperature": 1e-40},
        "temperature without do_sample": {"temperature": 0.7, "top_p": 0.9},
        "max_length": {"max_length": 3},
        "max_length as of Llama 3": {"max_length": 4096},
        "max_new_tokens": {"max_new_tokens": 1},
        "max_new_tokens 0": {"max_new_tokens": 0},
        "max_time": {"max_time": 1e-9},
        "num_beams": {"num_beams": 4, "length_penalty": -2.0, "early_stopping": True},
        "num_beams as text": {"num_beams": "4"},
        "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        "num_return_sequences": {"num_return_sequences": 3},
        "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
        "dola_layers": {"dola_layers": "high"},
        "constraints": {"constraints": [[token]]},
        "force_words_ids": {"force_words_ids": [[[token]]]},
        "low_memory": {"low_memory": True},
        "forced_bos_token_id": {"forced_bos_token_id": token},
        "forced_eos_token_id": {"forced_eos_token_id": token},
        "forced_eos_token_id and suppress_tokens": {"forced_eos_token_id": 1, "begin_suppress_tokens": [1]},
        "decoder_start_token_id": {"decoder_start_token_id": 1},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 1e300]},
        "guidance_scale": {"guidance_scale": 3.0},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
        "watermarking_config": {"watermarking_config": {"bias": 9.0}},
        "watermarking_config of SynthID": {"watermarking_config": {"ngram_len": 5, "keys": [1, 2]}},
        "token_healing": {"token_healing": True},
        "renormalize_logits": {"renormalize_logits": True},
        "use_cache": {"use_cache": False},
        "cache_implementation hybrid": {"cache_implementation": "hybrid"},
        "cache_implementation static": {"cache_implementation": "static", "max_cache_len": 2},
        "cache_implementation quantized": {"cache_implementation": "quantized", "cache_config": {"backend": "none"}},
        "cache_implementation unknown": {"cache_implementation": "holographic"},
        "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
        "num_assistant_tokens": {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant"},
        "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.9, "is_assistant": True},
        "assistant_early_exit": {"assistant_early_exit": 1},
        "assistant lookbehinds": {"assistant_lookbehind": 3, "target_lookbehind": 3, "assistant_ensemble_weight": 7},
        "use_mtp": {"use_mtp": True, "speculation_type": "dflash"},
        "compile_config": {"compile_config": {"mode": "default"}, "disable_compile": True},
        "continuous_batching_config": {"continuous_batching_config": {"num_blocks": 1}},
        "prefill_chunk_size": {"prefill_chunk_size": 1},
        "return_dict_in_generate": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        "output_attentions": {"output_attentions": True, "output_hidden_states": True},
        "pad_token_id and bos_token_id": {"pad_token_id": -5, "bos_token_id": "x"},
        "unknown keys": {"temperatur": 0.7, "streamer": 1, "logits_processor": [], "assistant_model": "a/b"},
        "null values": dict.fromkeys(FIELDS),
        "text for every value": dict.fromkeys(FIELDS, "nonsense") | {"stop_strings": None},
        "a list for every value": {name: [[]] for name in FIELDS},
        "a mapping for every value": {name: {"a": 1} for name in FIELDS},
        "negative numbers": dict.fromkeys(FIELDS, -7) | {"length_penalty": None},
        "huge numbers": dict.fromkeys(FIELDS, 10**400) | {"do_sample": True, "temperature": 0},
        "every token suppressed": {"suppress_tokens": list(range(400)), "bad_words_ids": [[1]]},
        "not a number": b'{"temperature": NaN, "do_sample": NaN, "repetition_penalty": Infinity, "eos_token_id": NaN}',
        "half a character": b'{"stop_strings": ["\\ud800"]}',
        "not JSON": b"{'temperature': 0.7",
        "an empty file": b"",
        "a list": [SAMPLED],
        "not UTF-8": b'{"stop_strings": "\xff"}',
        "nested deeply": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "too large": b'{"do_sample": true, "temperature": 2.0, "x": "' + b"a" * 1_000_000 + b'"}',
    }  # fmt: skip
    for name, content in contents.items():
        yield name, Case(content, None)


def test_every_setting_acts_the_same_on_every_path(loaded: LoadedModel) -> None:
    plain = with_generation_config(loaded, {})
    baseline = transformers_answer(plain, {})
    outcomes: dict[str, dict[str, str]] = {}
    silent = set()
    with serving(loaded) as serve:
        paths = {"generate": _generate, "batch": _batch, "chat": _chat, "serve": serve}
        for name, case in (*honoured(plain), *unchanged(plain)):
            expected = baseline if case.same_as is None else transformers_answer(plain, case.same_as)
            outcome = "left out" if expected == baseline else "honoured"
            configured = with_generation_config(loaded, case.content)
            if outcome == "left out" and not configured.plan.generation.left_out:
                silent.add(name)
            outcomes[name] = {path: outcome if run(configured) == expected else "WRONG" for path, run in paths.items()}
    if _WRITES_TABLE:
        sys.stdout.write(f"\n{loaded.measured.dtype}\n{_table(outcomes)}\n")
    assert [row for row in outcomes.items() if "WRONG" in row[1].values()] == []
    assert silent == WITHOUT_EFFECT
    assert [name for name, _ in honoured(plain) if set(outcomes[name].values()) != {"honoured"}] == []


def test_the_settings_of_one_answer_do_not_leak_into_another(loaded: LoadedModel) -> None:
    plain = llmctl.generate(loaded, PROMPT)
    configured = with_generation_config(
        loaded, {"suppress_tokens": list(plain.token_ids[:2]), "begin_suppress_tokens": [3]}
    )
    prompts = [Prompt((5, 6)), Prompt((5, 6, 7, 8))]
    requests = [make_request(model, prompt) for model in (configured, loaded) for prompt in prompts]
    together = dict(engine_for_many(loaded).run(enumerate(requests)))
    for number, request in enumerate(requests):
        *_, alone = stream_request(loaded, request)
        assert alone.completion is not None
        assert together[number].token_ids == alone.completion.token_ids


def _table(outcomes: dict[str, dict[str, str]]) -> str:
    rows = [("case", *next(iter(outcomes.values()))), *((name, *cells.values()) for name, cells in outcomes.items())]
    return "\n".join(f"{row[0]:<42}" + "".join(f"{cell:<15}" for cell in row[1:]) for row in rows)
