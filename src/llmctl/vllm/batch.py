"""Answering of a batch's rows with vLLM: llmctl prepares prompts and settings, and sends tokens to /v1/completions."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.answer import Answer
from llmctl.generation.batch.answers import RowOutcome, RowRequest, row_chat, row_requests
from llmctl.generation.batch.rows import Row
from llmctl.generation.completion import Completion, FinishReason
from llmctl.generation.logprobs import Alternative, TokenLogprob
from llmctl.generation.pieces import assemble
from llmctl.generation.request import Request
from llmctl.generation.structured.structure import Structure
from llmctl.vllm.images import as_completion, chat_fields
from llmctl.vllm.process import VllmProcess
from llmctl.vllm.translate import Translation

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response
    from transformers import PreTrainedTokenizerBase

    from llmctl.loading.model import PromptModel

# vLLM batches requests itself and queues those that do not fit.
MAX_CONCURRENT = 128
_POLL_SECONDS = 0.2
_ATTEMPTS = 3
_ROW_KEYS = frozenset(
    {
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_strings",
        "extra_eos_tokens", "logprobs",
    }
)  # fmt: skip
# Keys whose vLLM arguments change answers. Like the machine, the number of GPUs is ignored.
_ANSWER_KEYS = frozenset(
    {
        "load.dtype", "load.attn_implementation", "quantization.bits", "tokenizer.model_max_length", "deterministic",
        "generation.cache_implementation", "vllm.max_model_len", "vllm.extra",
    }
)  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class VllmBatch:
    """Answers rows on a running vLLM.

    Args:
        process: The running vLLM.
        translation: The translation with which it was started.
        key: Its API key.
    """

    def __init__(self, process: VllmProcess, translation: Translation, key: str) -> None:
        self._process, self._translation, self._key = process, translation, key

    def answers(
        self, loaded: "PromptModel", rows: Iterable[Row], *, on_pass: Callable[[int], None] = lambda _: None
    ) -> Iterator[RowOutcome]:
        """Answer rows, as `generation.batch.answers.answers` does.

        Raises:
            LlmctlError: vLLM exited.
        """
        client = self._client()
        # In this thread: prompts are rendered in forks, which are unsafe with more threads.
        loop = asyncio.new_event_loop()
        pending: dict[asyncio.Task[Completion], tuple[Row, RowRequest]] = {}
        requests, tokens, has_more = row_requests(loaded, iter(rows)), 0, True
        try:
            while has_more or pending:
                while has_more and len(pending) < MAX_CONCURRENT:
                    if (item := next(requests, None)) is None:
                        has_more = False
                        break
                    row, made = item
                    try:
                        body = self._body(row, made)
                    except LlmctlError as error:
                        yield row, error, None
                        continue
                    assert isinstance(made, RowRequest)  # noqa: S101 (an error has no body)
                    pending[loop.create_task(self._answer(client, made, body))] = (row, made)
                on_pass(tokens)
                for task in loop.run_until_complete(_wait_for_some(pending)):
                    row, made = pending.pop(task)
                    outcome = self._outcome(task)
                    tokens += len(outcome.token_ids) if isinstance(outcome, Completion) else 0
                    yield row, outcome, made
        finally:
            for task in pending:
                task.cancel()
            loop.run_until_complete(_close(client, list(pending)))
            loop.close()

    def _client(self) -> "AsyncClient":
        import httpx2

        return httpx2.AsyncClient(
            base_url=self._process.launch.address,
            headers={"Authorization": f"Bearer {self._key}"},
            limits=httpx2.Limits(max_connections=MAX_CONCURRENT, max_keepalive_connections=MAX_CONCURRENT),
            timeout=None,
            trust_env=False,
        )

    def _outcome(self, task: "asyncio.Task[Completion]") -> Completion | LlmctlError:
        try:
            return task.result()
        except MachineError as error:
            self._process.check_healthy()  # an exit of vLLM ends the run; other errors affect only this row
            return error
        except UserError as error:
            return error

    def _body(self, row: Row, made: RowRequest | LlmctlError) -> dict[str, Any]:
        """Return the body of a row's request. Raise LlmctlError if the row cannot be answered."""
        if isinstance(made, LlmctlError):
            raise made
        _check_settings(row)
        body = request_body(made, self._translation.served_name)
        if not row.media:
            return body
        chat = row_chat(made.loaded.config.chat, row)
        return with_chat(body, chat_fields(made.loaded.tokenizer, row.prompt, made.request.prompt, chat))

    async def _answer(self, client: "AsyncClient", made: RowRequest, body: Mapping[str, Any]) -> Completion:
        """Answer one row. Raises UserError if vLLM refuses it, MachineError if vLLM fails."""
        import httpx2

        started, is_chat = time.perf_counter(), "messages" in body
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                response = await client.post("/v1/chat/completions" if is_chat else "/v1/completions", json=body)
                break
            except httpx2.TransportError as error:  # the server may close an idle connection while it is being reused
                if not attempts_left:
                    raise MachineError(f"vLLM no longer answers: {type(error).__name__}") from error
                await asyncio.sleep(_POLL_SECONDS)
        if response.status_code != 200:
            raise _response_error(response)
        document = as_completion(response.json()) if is_chat else response.json()
        return split_completion(
            parse_completion(document, made.request, seconds=time.perf_counter() - started),
            made.loaded.tokenizer,
            made.request,
        )


async def _close(client: "AsyncClient", tasks: "list[asyncio.Task[Completion]]") -> None:
    """Wait for cancelled tasks, then close the client."""
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


async def _wait_for_some(tasks: "Iterable[asyncio.Task[Completion]]") -> "set[asyncio.Task[Completion]]":
    """Wait until a task has finished or a moment has passed. Return the finished tasks."""
    waiting = list(tasks)
    if not waiting:
        return set()
    done, _ = await asyncio.wait(waiting, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    return done


def engine_identity(translation: Translation) -> dict[str, Any]:
    """Return vLLM's part of a run's identity: the settings that change answers."""
    used = {
        key.key: key.value for key in translation.keys if key.outcome.kind == "translated" and key.key in _ANSWER_KEYS
    }
    return {"name": "vllm", **{name: str(value) for name, value in sorted(used.items())}}


def request_body(made: RowRequest, model: str) -> dict[str, Any]:
    """Return the body of a request to /v1/completions, with all sampling settings."""
    request, arguments = made.request, made.request.arguments
    sampling: dict[str, Any] = {"temperature": 0.0}
    if arguments.get("do_sample"):
        sampling = {name: arguments[name] for name in _SAMPLING if arguments.get(name) is not None}
    return {
        "model": model,
        "prompt": list(request.prompt.ids),
        "max_tokens": request.budget,
        "seed": request.seed,
        **sampling,
        "repetition_penalty": arguments.get("repetition_penalty") or 1.0,
        "min_tokens": arguments.get("min_new_tokens", 0),
        "stop": list(request.stop_strings),
        "stop_token_ids": sorted(request.eos_token_ids),
        "logprobs": request.logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **({"structured_outputs": _structure(request.structure)} if request.structure else {}),
    }


def with_chat(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request to /v1/chat/completions with the settings of one to /v1/completions."""
    kept = {name: value for name, value in body.items() if name not in ("prompt", "logprobs")}
    count = body["logprobs"]
    logprobs = {} if count is None else {"logprobs": True, "top_logprobs": count}
    return {**kept, **logprobs, **fields}


def _structure(structure: Structure) -> dict[str, Any]:
    """Return the schema or grammar for vLLM's backend `guidance`, which also is llguidance."""
    if structure.kind == "grammar":
        return {"grammar": structure.grammar}
    inner, *others = json.loads(structure.grammar)["grammars"]
    if others:  # the structure after reasoning
        return {"grammar": structure.grammar}
    return {"json": inner["json_schema"]} if structure.is_json else {"grammar": inner["lark_grammar"]}


def parse_completion(document: Mapping[str, Any], request: Request, *, seconds: float) -> Completion:
    """Return vLLM's answer as a completion. Its time to the first token is unknown and set to the total time."""
    choice = document["choices"][0]
    stop_reason = choice.get("stop_reason")
    reason: FinishReason = "stop" if choice["finish_reason"] == "stop" else "length"
    if isinstance(stop_reason, str):
        reason = "stop_string"
    return Completion(
        text=choice["text"],
        token_ids=tuple(choice["token_ids"]),
        finish_reason=reason,
        length_limit=request.length_limit if reason == "length" else None,
        stop_string=stop_reason if isinstance(stop_reason, str) else None,
        prompt=request.prompt,
        seed=request.seed,
        first_token_seconds=seconds,
        seconds=seconds,
        logprobs=None if request.logprobs is None else _logprobs(choice["logprobs"], request.logprobs),
        is_json=reason == "stop" and request.structure is not None and request.structure.is_json,
    )


def split_completion(completion: Completion, tokenizer: "PreTrainedTokenizerBase", request: Request) -> Completion:
    """Return vLLM's completion with reasoning and calls separated from the text, like those of `llmctl serve`."""
    if request.response is None:
        return completion
    if not request.response.shown_tokens:
        splitter = request.response.splitter()
        split = assemble([*splitter.add(completion.text), *splitter.finish()])
        return replace(completion, text=split.text, reasoning=split.reasoning, calls=split.calls)
    # the marks are special tokens, which are not in vLLM's text
    answer = Answer(tokenizer, replace(request, structure=None))
    for token in completion.token_ids:
        answer.take(token)
    answer.finish()
    ours = answer.completion()
    return replace(completion, text=ours.text, reasoning=ours.reasoning, calls=ours.calls)


def _logprobs(logprobs: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...]:
    """Return vLLM's raw log-probabilities in llmctl's form.

    vLLM adds the chosen token to the top tokens if it is not among them; this removes it.
    """

    def token_id(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    scored = []
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True):
        ranked = sorted((top or {}).items(), key=lambda item: -item[1])
        alternatives = tuple(Alternative(token_id(name), value) for name, value in ranked[:count])
        scored.append(TokenLogprob(token_id(token), logprob, alternatives))
    return tuple(scored)


def _check_settings(row: Row) -> None:
    """Raise UserError if a row has a setting that vLLM lacks or supports only for a whole run."""
    for name in row.settings.get("generation", {}):
        if name not in _ROW_KEYS:
            raise UserError(f"vLLM does not support generation.{name} in a row")


def _response_error(response: "Response") -> LlmctlError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    if 400 <= response.status_code < 500:
        return UserError(f"vLLM refused the row: {message}")
    return MachineError(f"vLLM failed: {response.status_code} {message}")
