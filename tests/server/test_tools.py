"""Tools of a request and calls of an answer have OpenAI's shape."""

from typing import Any

import pytest
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall
from pydantic import TypeAdapter, ValidationError

from llmctl.config import ChatSection
from llmctl.generation.pieces import ArgumentsDelta, CallStart, TextDelta, ToolCall
from llmctl.model.tokenizer import load_tokenizer
from llmctl.server.http_errors import RequestError
from llmctl.server.tool_calls import CallBody, ToolBody, ToolChoiceBody, openai_calls, openai_delta, resolve_tool_use
from support.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, {}, source="acme/tiny")


def tools(*names: str) -> list[ToolBody]:
    return [ToolBody.model_validate({"type": "function", "function": {"name": name}}) for name in names]


def choice(value: Any) -> Any:
    return TypeAdapter[Any](ToolChoiceBody).validate_python(value)


@pytest.mark.parametrize(
    ("value", "mode", "names"),
    [
        (None, "auto", ["a", "b"]),
        ("auto", "auto", ["a", "b"]),
        ("none", "none", []),
        ("required", "required", ["a", "b"]),
        ({"type": "function", "function": {"name": "b"}}, "required", ["b"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "a"}}]}},
            "auto",
            ["a"],
        ),
    ],
)
def test_every_tool_choice_is_supported(value: Any, mode: str, names: list[str], tokenizer: Any) -> None:
    use = resolve_tool_use(tokenizer, ChatSection(), tools("a", "b"), choice(value) if value else None)
    assert use.choice == mode
    assert [tool["function"]["name"] for tool in use.tools] == names


def test_without_tools_nothing_changes(tokenizer: Any) -> None:
    use = resolve_tool_use(tokenizer, ChatSection(), None)
    messages = [{"role": "user", "content": "hi"}]
    assert use.conversation(messages) == (messages, {})
    assert use.splitter() is None
    assert not use.is_exact


def test_errors_have_the_param_of_the_wrong_tool(tokenizer: Any) -> None:
    with pytest.raises(RequestError) as error:
        resolve_tool_use(tokenizer, ChatSection(), tools("a", "b", "a"))
    assert error.value.param == "tools[2].function.name"
    with pytest.raises(RequestError) as error:
        resolve_tool_use(tokenizer, ChatSection(), [], choice("required"))
    assert error.value.param == "tool_choice"


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "a\n", "</tool_call>", "é"])
def test_a_name_is_letters_digits_and_dashes(name: str) -> None:
    with pytest.raises(ValidationError):
        tools(name)


def test_calls_are_what_the_client_expects() -> None:
    [call] = openai_calls([ToolCall("call_1", "f", "{}")])
    ChatCompletionMessageFunctionToolCall.model_validate(call, strict=True)
    CallBody.model_validate(call)
    pieces = [TextDelta("a"), CallStart(0, "call_1", "f"), ArgumentsDelta(0, "{}")]
    deltas = [ChoiceDelta.model_validate(openai_delta(piece), strict=True) for piece in pieces]
    assert deltas[0].content == "a"
    assert [delta.tool_calls[0].index for delta in deltas[1:] if delta.tool_calls] == [0, 0]
