"""The rows of a batch, answered by a vLLM: prompts and settings are made here, the tokens go to /v1/completions."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.batch.answers import Made, Outcome, requests_of
from llmctl.generation.batch.rows import Row
from llmctl.generation.completion import Completion, FinishReason
from llmctl.generation.logprobs import Alternative, TokenLogprob
from llmctl.generation.request import Request
from llmctl.generation.structured.structure import Structure
from llmctl.vllm.child import Child
from llmctl.vllm.translate import Translation

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

    from llmctl.loading.model import PromptModel

# vLLM puts them together as they fit; more than it takes at once wait there
AT_ONCE = 128
_LOOK_SECONDS = 0.2
_TRIES = 3
_PER_ROW = frozenset(
    {
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_strings",
        "extra_eos_tokens", "logprobs",
    }
)  # fmt: skip
# keys whose effect is in vLLM's arguments; over how many GPUs it runs is no more part of an answer than the machine is
_DECIDING = frozenset(
    {
        "load.dtype", "load.attn_implementation", "quantization.bits", "tokenizer.model_max_length", "deterministic",
        "generation.cache_implementation", "vllm.max_model_len", "vllm.extra",
    }
)  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class Remote:
    """What computes rows on a running vLLM.

    Args:
        child: The vLLM.
        translation: What it was started with.
        key: The API key that it was given.
    """

    def __init__(self, child: Child, translation: Translation, key: str) -> None:
        self._child, self._translation, self._key = child, translation, key

    def answers(
        self, loaded: "PromptModel", rows: Iterable[Row], *, on_pass: Callable[[int], None] = lambda _: None
    ) -> Iterator[Outcome]:
        """As `generation.batch.answers.answers`, computed there.

        Raises:
            LlmctlError: vLLM ended.
        """
        import httpx2

        limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        headers = {"Authorization": f"Bearer {self._key}"}
        client = httpx2.AsyncClient(
            base_url=self._child.start.address, headers=headers, limits=limits, timeout=None, trust_env=False
        )
        loop = asyncio.new_event_loop()  # in this thread: prompts are rendered in forks, which threads would endanger
        under_way: dict[asyncio.Task[Completion], tuple[Row, Made]] = {}
        requests, tokens, more = requests_of(loaded, iter(rows)), 0, True
        try:
            while more or under_way:
                while more and len(under_way) < AT_ONCE:
                    if (item := next(requests, None)) is None:
                        more = False
                        break
                    row, made = item
                    refused = made if isinstance(made, LlmctlError) else _refusal(row)
                    if refused is not None:
                        yield row, refused, None
                    elif isinstance(made, Made):
                        under_way[loop.create_task(self._answer(client, made))] = (row, made)
                on_pass(tokens)
                for task in loop.run_until_complete(_some(under_way)):
                    row, made = under_way.pop(task)
                    outcome = self._outcome(task)
                    tokens += len(outcome.token_ids) if isinstance(outcome, Completion) else 0
                    yield row, outcome, made
        finally:
            for task in under_way:
                task.cancel()
            loop.run_until_complete(_end(client, list(under_way)))
            loop.close()

    def _outcome(self, task: "asyncio.Task[Completion]") -> Completion | LlmctlError:
        try:
            return task.result()
        except MachineError as error:
            self._child.check_well()  # the end of vLLM is the end of the run; anything else is the row's own
            return error
        except UserError as error:
            return error

    async def _answer(self, client: "AsyncClient", made: Made) -> Completion:
        """One row's answer. Raises UserError where vLLM refuses the row, MachineError where it fails."""
        import httpx2

        body, began = body_of(made, self._translation.served_name), time.perf_counter()
        for left in reversed(range(_TRIES)):
            try:
                response = await client.post("/v1/completions", json=body)
                break
            except httpx2.TransportError as error:  # a server may close a connection just when it is used again
                if not left:
                    raise MachineError(f"vLLM does not answer any more: {type(error).__name__}") from error
                await asyncio.sleep(_LOOK_SECONDS)
        if response.status_code != 200:
            raise _refused(response)
        return completion_of(response.json(), made.request, seconds=time.perf_counter() - began)


async def _end(client: "AsyncClient", tasks: "list[asyncio.Task[Completion]]") -> None:
    """Let go of what is under way, cancelled before."""
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


async def _some(tasks: "Iterable[asyncio.Task[Completion]]") -> "set[asyncio.Task[Completion]]":
    """Those that are done, once there are some or a moment has passed."""
    waiting = list(tasks)
    if not waiting:
        return set()
    done, _ = await asyncio.wait(waiting, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    return done


def deciding(translation: Translation) -> dict[str, Any]:
    """What of vLLM's own settings decides an answer: a part of the identity of a run."""
    said = {one.key: one.value for one in translation.keys if one.said.kind == "argument" and one.key in _DECIDING}
    return {"name": "vllm", **{key: str(value) for key, value in sorted(said.items())}}


def body_of(made: Made, name: str) -> dict[str, Any]:
    """The body for /v1/completions that asks for what a request says; every setting is said."""
    request, arguments = made.request, made.request.arguments
    sampling: dict[str, Any] = {"temperature": 0.0}
    if arguments.get("do_sample"):
        sampling = {name: arguments[name] for name in _SAMPLING if arguments.get(name) is not None}
    return {
        "model": name,
        "prompt": list(request.ids),
        "max_tokens": request.budget,
        "seed": request.seed,
        **sampling,
        "repetition_penalty": arguments.get("repetition_penalty") or 1.0,
        "stop": list(request.stop_strings),
        "stop_token_ids": sorted(request.eos_token_ids),
        "logprobs": request.logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **({"structured_outputs": _structure(request.structure)} if request.structure else {}),
    }


def _structure(structure: Structure) -> dict[str, Any]:
    """The form of an answer, for vLLM's backend `guidance`, which is llguidance as here: the same schema or grammar."""
    if structure.kind == "grammar":
        return {"grammar": structure.grammar}
    [inner] = json.loads(structure.grammar)["grammars"]
    return {"json": inner["json_schema"]} if structure.is_json else {"grammar": inner["lark_grammar"]}


def completion_of(document: Mapping[str, Any], request: Request, *, seconds: float) -> Completion:
    """vLLM's answer as a completion. The time to the first token is not known: it is that of the whole."""
    choice = document["choices"][0]
    stopped_by = choice.get("stop_reason")
    reason: FinishReason = "stop" if choice["finish_reason"] == "stop" else "length"
    if isinstance(stopped_by, str):
        reason = "stop_string"
    return Completion(
        text=choice["text"],
        token_ids=tuple(choice["token_ids"]),
        finish_reason=reason,
        stop_string=stopped_by if isinstance(stopped_by, str) else None,
        prompt_token_count=len(request.ids),
        seed=request.seed,
        first_token_seconds=seconds,
        seconds=seconds,
        logprobs=None if request.logprobs is None else _logprobs(choice["logprobs"], request.logprobs),
        prompt_ids=request.ids,
        is_json=reason == "stop" and request.structure is not None and request.structure.is_json,
    )


def _logprobs(said: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...]:
    """Each token's, raw as llmctl's are; vLLM adds the chosen token to the likeliest where it is none of them."""

    def number(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    found = []
    likeliest = said.get("top_logprobs") or [None] * len(said["tokens"])
    for token, logprob, top in zip(said["tokens"], said["token_logprobs"], likeliest, strict=True):
        ranked = sorted(((value, number(name)) for name, value in (top or {}).items()), key=lambda one: -one[0])
        alternatives = tuple(Alternative(one, value) for value, one in ranked[:count])
        found.append(TokenLogprob(number(token), logprob, alternatives))
    return tuple(found)


def _refusal(row: Row) -> UserError | None:
    """What a row asks for that only holds for a whole run, or that vLLM does not have."""
    wrong = [name for name in row.settings.get("generation", {}) if name not in _PER_ROW]
    return UserError(f"generation.{wrong[0]} of a row cannot be said to vLLM") if wrong else None


def _refused(response: "Response") -> LlmctlError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    if 400 <= response.status_code < 500:
        return UserError(f"vLLM refuses it: {message}")
    return MachineError(f"vLLM failed: {response.status_code} {message}")
