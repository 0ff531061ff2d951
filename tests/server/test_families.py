"""OpenAI's client against servers whose tiny model writes what the models of seven families write.

A logits processor makes the model write a script: each of its tokens gets the highest logit, unless the grammar of the
answer forbids it. Engine, grammar, detokeniser, splitter and HTTP are the real ones.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai
import pytest

import llmctl
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import Request
from llmctl.machine import sandbox
from llmctl.server.app import make_app
from llmctl.server.registry import ModelRegistry
from llmctl.server.worker import Worker
from support.families.reader import (
    ANSWER,
    JSON,
    JSON_SCHEMA,
    REASON,
    RESULT,
    STRICT,
    TEXT,
    TIME,
    TOOLS,
    USER,
    WEATHER,
    tool,
    with_template,
)
from support.families.table import FAMILIES, Family, Mode
from support.families.writing import Call
from support.listening import listening
from support.tiny import write_model, write_tokenizer

TEMPLATES = Path(__file__).parents[1] / "support" / "templates" / "families"
NAMES = ("Qwen 3", "gpt-oss", "Gemma 4", "Mistral Small 3.2", "DeepSeek V3.1", "GLM 4.7", "LFM 2")
GO_SCHEMA = {
    "type": "object",
    "properties": {"where": {"enum": ["north"]}},
    "required": ["where"],
    "additionalProperties": False,
}
SERVED = {family.name: family for family in FAMILIES if family.name in NAMES}


class Script:
    """A logits processor that makes the model write ids."""

    def __init__(self, prompt_tokens: int, ids: Sequence[int]) -> None:
        self._prompt_tokens, self._ids = prompt_tokens, ids

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Raise the logit of the next token."""
        position = ids.shape[1] - self._prompt_tokens
        scores[0, self._ids[min(position, len(self._ids) - 1)]] += 1000
        return scores


@dataclass(frozen=True)
class ScriptedRegistry(ModelRegistry):
    """A model that writes `script[-1]`. The texts of its prompts are kept."""

    script: list[str] = field(default_factory=list)
    prompt_texts: list[str] = field(default_factory=list)

    def requests(self, model: Any, body: Any, prompt: Prompt, **changes: Any) -> list[Request]:
        """Return the requests for a prompt, and keep its text."""
        self.prompt_texts.append(str(self.loaded.tokenizer.decode(list(prompt.ids))))
        return super().requests(model, body, prompt, **changes)

    def processors(self, body: Any, request: Request) -> list[Any]:
        """Return the processor for the script."""
        tokenizer: Any = self.loaded.tokenizer
        ids = tokenizer(self.script[-1], add_special_tokens=False)["input_ids"]
        return [Script(len(request.prompt), [*ids, tokenizer.eos_token_id])]


@dataclass(frozen=True)
class Message:
    """A message of the server, whole or from a stream."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]
    finish_reason: str


@dataclass(frozen=True)
class Server:
    """A running server for a family."""

    family: Family
    client: openai.OpenAI
    registry: ScriptedRegistry

    @property
    def mode(self) -> Mode:
        """The mode in which it runs."""
        return mode_of(self.family)

    @property
    def reasoning(self) -> str:
        """The reasoning before each answer."""
        return REASON if self.mode.think else ""

    def says(self, text: str) -> str:
        """Return what the model writes for an answer or for calls."""
        return self.mode.think.replace("{}", REASON) + text

    def calls(self, calls: Sequence[Call], text: str = "") -> str:
        """Return what the model writes for calls."""
        assert self.mode.before is not None
        before = self.mode.before.replace("{}", text) if text else self.mode.bare
        return self.says(before + self.family.write(calls))

    def ask(self, script: str, messages: Sequence[Any] = (USER,), **fields: Any) -> Message:
        """Return the message for a request, after a check that the streamed one is equal."""
        self.registry.script.append(script)
        fields = {"model": "tiny", "messages": list(messages), **fields}
        choice = self.client.chat.completions.create(**fields).choices[0]
        whole = Message(
            choice.message.content or "",
            (choice.message.model_extra or {}).get("reasoning_content", ""),
            tuple((call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()),
            choice.finish_reason,
        )
        assert self._streamed(fields) == whole
        return whole

    def _streamed(self, fields: dict[str, Any]) -> Message:
        content, reasoning, calls, reason = "", "", [], ""
        for chunk in self.client.chat.completions.create(stream=True, **fields):
            choice = chunk.choices[0]
            content += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    calls.append([call.function.name, ""])
                calls[call.index][1] += call.function.arguments or ""
            reason = choice.finish_reason or reason
        return Message(content, reasoning, tuple((name, arguments) for name, arguments in calls), reason)


@pytest.fixture(autouse=True, scope="module")
def _no_forks() -> Iterator[None]:
    """Render these templates, which are safe, without processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "CAN_FORK_SAFELY", False)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> llmctl.LoadedModel:
    folder = tmp_path_factory.mktemp("families") / "tiny"
    write_model(folder, vocab_size=1024, max_position_embeddings=4096)
    words = [json.dumps(TOOLS), REASON, TEXT, ANSWER, *map(template_of, SERVED.values())]
    words += [family.write([WEATHER, TIME]) for family in SERVED.values()]
    write_tokenizer(folder, text="\n".join(words), size=900)  # few tokens for what is written here
    return llmctl.load(folder, load={"dtype": "float32"}, generation={"temperature": 0, "max_new_tokens": 600})


@pytest.fixture(scope="module", params=NAMES)
def server(request: pytest.FixtureRequest, tiny: llmctl.LoadedModel) -> Iterator[Server]:
    family = SERVED[str(request.param)]
    chat = tiny.config.chat.model_copy(update={"template_kwargs": dict(mode_of(family).arguments)})
    prepared = replace(tiny.prepared, config=tiny.config.model_copy(update={"chat": chat}))
    tokenizer = with_template(tiny.tokenizer, template_of(family), family)
    loaded = replace(tiny, prepared=prepared, tokenizer=tokenizer)
    worker = Worker(loaded, max_queue=4, max_sequences=2)
    registry = ScriptedRegistry("tiny", loaded, worker, 1, 60.0)
    with (
        listening(make_app(registry, drain_seconds=1)) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield Server(family, client, registry)


def template_of(family: Family) -> str:
    """Return the small template of a family."""
    return (TEMPLATES / f"{family.small}.jinja").read_text(encoding="utf-8")


def mode_of(family: Family) -> Mode:
    """Return the mode in which a family is served: with reasoning, if it has it."""
    return family.thinking or family.modes[0]


def as_read(calls: Sequence[tuple[str, str]]) -> list[Call]:
    """Return calls with parsed arguments."""
    return [(name, json.loads(arguments)) for name, arguments in calls]


def test_calls_are_recognised_after_reasoning_and_text(server: Server) -> None:
    calls = [WEATHER] if server.family.one_call else [WEATHER, TIME]
    message = server.ask(server.calls(calls, TEXT), tools=TOOLS)
    assert as_read(message.calls) == calls
    assert (message.content.strip(), message.reasoning.strip()) == (TEXT, server.reasoning)
    assert message.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (WEATHER, {"tools": TOOLS, "tool_choice": "required"}),
        (TIME, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_time"}}}),
        (WEATHER, {"tools": STRICT}),
    ],
    ids=["required", "named", "strict"],
)
def test_an_enforced_call_is_what_the_model_writes(call: Call, fields: dict[str, Any], server: Server) -> None:
    message = server.ask(server.calls([call]), **fields)
    assert as_read(message.calls) == [call]
    assert (message.content, message.reasoning.strip()) == ("", server.reasoning)
    assert message.finish_reason == "tool_calls"


def test_a_required_call_is_made_by_a_model_that_writes_text(server: Server) -> None:
    """Its text after reasoning does not fit the grammar, so that other tokens are taken."""
    header = "<|channel|>commentary" if server.family.name == "gpt-oss" else ""
    message = server.ask(server.says(header + ANSWER), tools=[tool("go", GO_SCHEMA)], tool_choice="required")
    assert as_read(message.calls)[0] == ("go", {"where": "north"})
    assert (message.content, message.reasoning.strip()) == ("", server.reasoning)


def test_reasoning_is_apart_from_the_answer(server: Server) -> None:
    message = server.ask(server.says(server.mode.answer.replace("{}", ANSWER)))
    assert message == Message(ANSWER, message.reasoning, (), "stop")
    assert message.reasoning.strip() == server.reasoning


def test_a_structured_answer_is_content_after_free_reasoning(server: Server) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": JSON_SCHEMA}}
    message = server.ask(server.says(server.mode.answer.replace("{}", JSON)), response_format=schema)
    assert message == Message(JSON, message.reasoning, (), "stop")
    assert message.reasoning.strip() == server.reasoning


def test_a_result_is_answered_in_a_second_turn(server: Server) -> None:
    server.registry.script.append(server.calls([WEATHER]))
    first = server.client.chat.completions.create(model="tiny", messages=[USER], tools=TOOLS).choices[0].message
    assert first.tool_calls is not None
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": RESULT}
    messages = [USER, first.model_dump(exclude_none=True), result]
    answer = server.mode.answer.replace("{}", ANSWER)
    message = server.ask(answer if server.family.direct_after_results else server.says(answer), messages, tools=TOOLS)
    assert (message.content.strip(), message.finish_reason) == (ANSWER, "stop")
    prompt = server.registry.prompt_texts[-1].rpartition(USER["content"])[2]
    assert "get_weather" in prompt
    assert "Rome" in prompt
    assert RESULT in prompt
    assert not server.family.keeps_reasoning or REASON in prompt
