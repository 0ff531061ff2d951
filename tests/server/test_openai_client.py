"""OpenAI's unmodified Python client against `llmctl serve`: every answer matches its types field by field."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel, ValidationError

from support.scripted import write_scripted
from support.served import served

TEMPLATE = (Path(__file__).parents[1] / "support" / "templates" / "qwen.jinja").read_text()
WORD = "{{ '[told]' if messages[-1].role == 'tool' else '[ask]' if tools else '[talk]' }}"
HELLO = ["Hello", ",", " I", " am", " here", "."]
CALLING = [
    "One moment.\n",
    "<tool_call>",
    '\n{"name": "get_weather", ',
    '"arguments": {"city": "Rome"}}',
    "\n</tool_call>",
]
SUNNY = ["It", " is", " sunny", "!"]
KEY = "a-key-of-the-tests-0123456789"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def function(name: str, parameters: Any = None, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters, **fields}}


WEATHER = function("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}})
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    replies = {"[talk]": HELLO, "[ask]": CALLING, "[told]": SUNNY}
    template = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n" + WORD + "{% endif %}")
    assert WORD in template
    folder = write_scripted(tmp_path_factory.mktemp("scripted") / "tiny", replies, template=template)
    with served(str(folder), "--model-name", "tiny", LLMCTL_API_KEY=KEY) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


# OpenAI's own service has null here: before the finish reason is known, and before the first token.
NULLS = re.compile(r"choices\.\d+\.(finish_reason|logprobs\.(token_logprobs|top_logprobs)\.0)")


def check_strictly(kind: type[BaseModel], value: BaseModel) -> None:
    """Check that a value is valid for the client's type, which its parser does not check, and has no unknown field."""
    document = value.model_dump(mode="json", exclude_unset=True)
    try:
        kind.model_validate(document)
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            assert kind is Completion, problem
            assert problem["input"] is None, problem
            assert NULLS.fullmatch(place), problem
    assert not list(unknown_fields(value)), document


def unknown_fields(value: Any, place: str = "") -> Iterator[str]:
    """Yield fields that OpenAI's types lack, but for reasoning, the seed of an answer, and what a model takes."""
    if isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            if name not in ("reasoning_content", "seed", "input_modalities"):
                yield f"{place}.{name}"
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from unknown_fields(part, f"{place}[{number}]")


# -- chat


def test_a_chat_answer_is_a_complete_chat_completion(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=USER)
    check_strictly(ChatCompletion, done)
    [choice] = done.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "Hello, I am here.",
        "stop",
    )
    assert choice.message.tool_calls is None
    assert (done.object, done.model) == ("chat.completion", "tiny")
    assert done.usage is not None
    assert done.usage.completion_tokens == len(HELLO) + 1, "including the end token"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_a_stream_has_the_role_first_then_text_the_reason_and_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=USER)
    chunks = list(
        client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks:
        check_strictly(ChatCompletionChunk, chunk)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_without_the_option_has_no_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_each_of_n_streamed_answers_has_its_index(client: openai.OpenAI) -> None:
    texts, reasons = {0: "", 1: "", 2: ""}, []
    for chunk in client.chat.completions.create(
        model="tiny", messages=USER, n=3, temperature=1.0, seed=5, max_tokens=8, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.index] if choice.finish_reason else []
    assert sorted(reasons) == [0, 1, 2]
    whole = client.chat.completions.create(model="tiny", messages=USER, n=3, temperature=1.0, seed=5, max_tokens=8)
    assert [choice.message.content for choice in whole.choices] == [texts[n] for n in range(3)]


def test_without_a_seed_each_answer_draws_and_reports_its_own(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "once upon", "temperature": 1.5, "max_tokens": 24}
    drawn = [client.completions.create(**options).choices[0] for _ in range(3)]
    seeds = [(choice.model_extra or {})["seed"] for choice in drawn]
    assert len(set(seeds)) == 3
    assert len({choice.text for choice in drawn}) == 3
    again = client.completions.create(**options, seed=seeds[1], stream=True)
    chunks = [chunk.choices[0] for chunk in again]
    assert "".join(choice.text for choice in chunks) == drawn[1].text
    assert (chunks[-1].model_extra or {})["seed"] == seeds[1]
    several = client.chat.completions.create(model="tiny", messages=USER, n=3, temperature=1.5, max_tokens=4).choices
    first, *others = ((choice.model_extra or {})["seed"] for choice in several)
    assert others == [(first + 1) % 2**32, (first + 2) % 2**32]


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        done = client.completions.create(model="tiny", prompt="once upon", temperature=1.5, seed=seed, max_tokens=12)
        return done.choices[0].text

    assert text(3) == text(3)
    assert len({text(seed) for seed in range(4)}) > 1


def test_it_stops_before_a_stop_string(client: openai.OpenAI) -> None:
    for stop in (" am", [" here", " am"]):
        done = client.chat.completions.create(model="tiny", messages=USER, stop=stop)
        assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("Hello, I", "stop")


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_a_cut_answer_has_the_reason_length(key: str, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=USER, **{key: 2})
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("Hello,", "length")


def test_log_probabilities_match_the_text(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=3)
    check_strictly(ChatCompletion, done)
    assert done.choices[0].logprobs is not None
    tokens = done.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens[: len(HELLO)]) == "Hello, I am here."
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
        assert token.logprob <= 0
    chunks = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=3, stream=True)
    parts = [c.choices[0].logprobs.content or [] for c in chunks if c.choices and c.choices[0].logprobs]
    assert [token for part in parts for token in part] == tokens


def test_an_answer_follows_its_json_schema(client: openai.OpenAI) -> None:
    for seed in range(3):
        done = client.chat.completions.create(
            model="tiny",
            messages=USER,
            temperature=1.5,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
        )
        jsonschema.validate(json.loads(done.choices[0].message.content or ""), CITY)
        assert done.choices[0].finish_reason == "stop"


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    class Place(BaseModel):
        big: bool
        rank: int

    done = client.chat.completions.parse(model="tiny", messages=USER, response_format=Place, temperature=1.0, seed=2)
    assert isinstance(done.choices[0].message.parsed, Place)


# -- tools


def test_the_model_can_call_a_tool(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=USER, tools=[WEATHER])
    check_strictly(ChatCompletion, done)
    [choice] = done.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Rome"})


def test_a_streamed_call_has_its_name_first_and_then_its_arguments(client: openai.OpenAI) -> None:
    deltas, reasons = [], []
    for chunk in client.chat.completions.create(model="tiny", messages=USER, tools=[WEATHER], stream=True):
        check_strictly(ChatCompletionChunk, chunk)
        deltas += [chunk.choices[0].delta]
        reasons += [chunk.choices[0].finish_reason]
    assert "".join(delta.content or "" for delta in deltas) == "One moment."
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert {part.index for part in parts} == {0}
    first, *rest = parts
    assert first.id
    assert first.function is not None
    assert (first.type, first.function.name, first.function.arguments) == ("function", "get_weather", "")
    assert all(part.id is None and part.function and part.function.name is None for part in rest)
    assert json.loads("".join(part.function.arguments or "" for part in rest if part.function)) == {"city": "Rome"}
    assert reasons[-1] == "tool_calls"


def test_the_clients_own_stream_helper_assembles_a_call(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=USER, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        done = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    [call] = done.choices[0].message.tool_calls or []
    assert call.function.arguments == '{"city": "Rome"}'


def test_the_result_of_a_tool_goes_back_to_the_model(client: openai.OpenAI) -> None:
    called = client.chat.completions.create(model="tiny", messages=USER, tools=[WEATHER]).choices[0].message
    assert called.tool_calls
    messages: Any = [*USER, called, {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sunny"}]
    done = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("It is sunny!", "stop")


def test_tool_choice_none_omits_the_tools(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=USER, tools=[WEATHER], tool_choice="none")
    assert (done.choices[0].message.content, done.choices[0].message.tool_calls) == ("Hello, I am here.", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "plan"}),
        ({"type": "function", "function": {"name": "plan"}}, {"plan"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "plan"}}]},
            },
            {"plan"},
        ),
    ],
)
def test_with_a_required_choice_every_call_is_valid(
    choice: Any, names: set[str], stream: bool, client: openai.OpenAI
) -> None:
    tools: Any = [function("get_weather", CITY, strict=True), function("plan", CITY)]
    for seed in range(3):
        body: Any = {"model": "tiny", "messages": USER, "tools": tools, "tool_choice": choice, "seed": seed}
        body |= {"parallel_tool_calls": False, "temperature": 1.5}
        if stream:
            with client.chat.completions.stream(**body) as streamed:
                done = streamed.get_final_completion()
        else:
            done = client.chat.completions.create(**body)
        [call] = done.choices[0].message.tool_calls or []
        assert done.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        assert call.function.name in names
        jsonschema.validate(json.loads(call.function.arguments), CITY)
        assert not done.choices[0].message.content


# -- other routes


def test_models_are_listed_and_retrieved_by_name(client: openai.OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed.data] == ["tiny"]
    model = client.models.retrieve("tiny")
    check_strictly(Model, model)
    assert (model.id, model.object) == ("tiny", "model")


def test_a_text_is_completed_whole_and_streamed(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="[talk]", max_tokens=20)
    check_strictly(Completion, done)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("Hello, I am here.", "stop")
    chunks = list(
        client.completions.create(
            model="tiny", prompt="[talk]", max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        check_strictly(Completion, chunk)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == done.choices[0].text
    assert chunks[-1].usage == done.usage


def test_several_prompts_have_their_answers_in_order(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=["[talk]", "[told]"], n=2, temperature=0.01, max_tokens=20)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in done.choices] == ["Hello, I am here."] * 2 + ["It is sunny!"] * 2


def test_echo_includes_the_log_probabilities_of_the_prompt(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="[talk]Hello, I", max_tokens=2, echo=True, logprobs=2)
    check_strictly(Completion, done)
    [choice] = done.choices
    assert choice.text == "[talk]Hello, I am here"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens == ["[talk]", "Hello", ",", " I", " am", " here"]
    assert logprobs.token_logprobs[0] is None
    assert all(value > -0.01 for value in logprobs.token_logprobs[1:])
    assert [len(top) for top in logprobs.top_logprobs[1:]] == [2] * 5
    assert logprobs.text_offset == [0, 6, 11, 12, 14, 17]


def test_a_response_is_complete(client: openai.OpenAI) -> None:
    done = client.responses.create(model="tiny", input="hi", instructions="be kind")
    check_strictly(Response, done)
    assert done.output_text == "Hello, I am here."
    assert (done.status, done.object) == ("completed", "response")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


def test_a_streamed_response_has_its_events_in_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input=USER, stream=True))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello, I am here."
    for event in events:
        check_strictly(type(event), event)
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello, I am here."


def test_tokenize_and_detokenize(client: openai.OpenAI) -> None:
    """The routes are vLLM's: lm-eval cuts its texts with the server's tokenizer."""
    root = str(client.base_url).removesuffix("v1/")
    body = {"prompt": "Hello, I", "add_special_tokens": False}
    tokens = client.post(f"{root}tokenize", body=body, cast_to=object)
    assert isinstance(tokens, dict)
    assert tokens["count"] == len(tokens["tokens"]) == 3
    assert client.post(f"{root}detokenize", body={"tokens": tokens["tokens"]}, cast_to=object) == {"prompt": "Hello, I"}
    about = client.get(f"{root}tokenizer_info", cast_to=object)
    assert isinstance(about, dict)
    assert about["eos_token"] == "<|endoftext|>"
    with pytest.raises(openai.BadRequestError):
        client.post(f"{root}detokenize", body={"tokens": [10**6]}, cast_to=object)


async def _with_asyncio(address: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        text = ""
        async for chunk in await client.chat.completions.create(model="tiny", messages=USER, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text


def test_the_asynchronous_client_works_too(address: str) -> None:
    import asyncio

    assert asyncio.run(_with_asyncio(address)) == "Hello, I am here."


# -- errors, each by its class


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 100}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 1000, "logprobs": True}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"tools": [function("a b")]}, "tools[0].function.name"),
        ({"tools": [function("a"), function("a")]}, "tools[1].function.name"),
        ({"tools": [function("a", {"properties": {"x": {"not": {}}}}, strict=True)]}, "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
    ],
)
def test_an_invalid_request_is_an_error_with_its_param(
    changes: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "tiny", "messages": USER, **changes})
    assert error.value.type == "invalid_request_error"
    assert str(error.value.param).startswith(param)
    assert isinstance(error.value.body, dict)
    assert set(error.value.body) == {"message", "type", "param", "code"}


def test_the_error_of_an_unenforceable_schema_names_the_keyword(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model="tiny", messages=USER, tools=[function("f", schema)], tool_choice="required"
        )
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model="tiny",
            messages=USER,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for name in ("other", "../tiny", "/etc/passwd"):
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model=name, messages=USER)
        assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_wrong_key_is_an_authentication_error(address: str) -> None:
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as error,
    ):
        stranger.models.list()
    assert error.value.code == "invalid_api_key"


@pytest.mark.parametrize("count", [5_000, 400_000])
def test_a_prompt_that_is_too_long_is_an_error(count: int, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x " * count}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="x " * count)
    assert error.value.code == "context_length_exceeded"
