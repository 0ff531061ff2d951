"""Each field of a request is honoured, or refused by its name; no key is dropped."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import llmctl
from llmctl.server.app import make_app
from llmctl.server.chat_body import ChatBody
from llmctl.server.fields import Row, closest_field, rows
from llmctl.server.http_errors import validation_error
from llmctl.server.registry import ModelRegistry
from llmctl.server.response_body import ResponseBody
from llmctl.server.routes.completions import CompletionBody
from llmctl.server.routes.tokenizer import TokenizeBody
from llmctl.server.schemas import Message
from llmctl.server.security.guard import Guard, Rules
from llmctl.server.worker import Worker
from support.listening import Answer, call, listening
from support.scripted import write_scripted
from support.tiny import CHATML

HELLO = ["Hello", ",", " I", " am", " here", "."]
SUNNY = ["It", " is", " sunny", "!"]
TEMPLATE = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{{ '[told]' if enable_thinking is defined and not enable_thinking else word or '[talk]' }}{% endif %}",
)
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    CHAT: (ChatBody, {"model": "tiny", "messages": USER}),
    TEXT: (CompletionBody, {"model": "tiny", "prompt": "[talk]"}),
    RESPONSES: (ResponseBody, {"model": "tiny", "input": "hi"}),
    "/tokenize": (TokenizeBody, {"messages": USER}),
}
# everything that OpenAI's, LangChain's and vLLM's clients send when nothing is asked for
DEFAULTS: dict[str, Any] = {
    "n": 1, "best_of": 1, "temperature": None, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "length_penalty": 1.0, "stop": [], "stop_token_ids": [],
    "bad_words": [], "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0, "priority": 0,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "use_beam_search": False, "logit_bias": {},
    "truncate_prompt_tokens": None, "prompt_logprobs": None, "allowed_token_ids": None, "return_token_ids": False,
    "stream": False, "stream_options": None, "store": False, "user": "me", "metadata": {"a": "b"}, "moderation": None,
    "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y", "seed": None, "echo": False,
    "response_format": {"type": "text"}, "guided_json": None, "structured_outputs": None,
}  # fmt: skip
CHAT_DEFAULTS: dict[str, Any] = {
    **DEFAULTS, "logprobs": False, "top_logprobs": None, "modalities": ["text"], "audio": None, "functions": [],
    "function_call": None, "parallel_tool_calls": False, "tool_choice": "none", "tools": [], "verbosity": "medium",
    "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False, "documents": None,
    "chat_template": None, "chat_template_kwargs": None, "include_reasoning": True, "reasoning_effort": None,
    "web_search_options": None, "prediction": {"type": "content", "content": "Hello"}, "max_completion_tokens": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("scripted") / "tiny"
    write_scripted(folder, {"[talk]": HELLO, "[told]": SUNNY}, template=TEMPLATE)
    loaded = llmctl.load(folder, generation={"max_new_tokens": 12})
    model = ModelRegistry("tiny", loaded, Worker(loaded, max_queue=100), 1, 60.0)
    with listening(Guard(make_app(model, drain_seconds=1), Rules())) as number:
        yield number


def post(port: int, path: str, **fields: Any) -> Answer:
    return call(port, path=path, body={**BODIES[path][1], **fields})


def text_of(answer: Answer) -> Any:
    document = json.loads(answer.body)
    assert answer.status == 200, document
    if "output" in document:
        return document["output"][-1]["content"][0]["text"]
    [choice] = document["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


# -- unknown and refused


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_key_is_refused_by_name(path: str, port: int) -> None:
    for name in ("surprise", "not-a-name", ""):
        error = post(port, path, **{name: None}).error
        assert error["code"] == "unknown_parameter"
        assert error["param"] == (name or None)


@pytest.mark.parametrize(
    ("path", "fields", "param", "guess"),
    [
        (CHAT, {"max_new_tokens": 5}, "max_new_tokens", "max_tokens"),
        (CHAT, {"chat_template_kwarg": {}}, "chat_template_kwarg", "chat_template_kwargs"),
        (RESPONSES, {"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        (CHAT, {"messages": [{"role": "user", "contents": "hi"}]}, "messages[0].contents", "content"),
        (CHAT, {"stream": True, "stream_options": {"include_usages": True}}, "stream_options.include_usages",
         "include_usage"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]},
         "tools[0].function.paramters", "parameters"),
        (TEXT, {"structured_outputs": {"choices": ["a"]}}, "structured_outputs.choices", "choice"),
    ],
)  # fmt: skip
def test_the_closest_field_is_named(path: str, fields: Any, param: str, guess: str, port: int) -> None:
    error = post(port, path, **fields).error
    assert error["param"] == param
    assert f"did you mean {guess}?" in error["message"]


def test_a_refused_field_is_not_suggested() -> None:
    assert closest_field(ChatBody, ["function"]) != "functions"
    assert closest_field(None, ["function"]) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "m", "num_predict": 5}, "num_predict: unknown key; did you mean max_tokens?"),
        (
            {"model": "m", "num_ctx": 5},
            "num_ctx: unknown key; it is set when the server starts: tokenizer.model_max_length",
        ),
        ({"model": "m", "surprise": 5}, "surprise: unknown key"),
        ({}, "model: Field required: an id from /v1/models"),
    ],
)
def test_a_key_of_another_server_leads_to_that_of_this_one(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"messages": USER, **fields})
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    assert validation_error(errors, ChatBody).message == message


@pytest.mark.parametrize("path", BODIES)
def test_a_refused_field_names_itself_and_null_is_accepted(path: str) -> None:
    body, minimal = BODIES[path]
    names = [row.path for row in rows(body) if row.kind == "refused" and "." not in row.path]
    assert len(names) > 5
    body.model_validate({**minimal, **dict.fromkeys(names)})
    for name in names:
        with pytest.raises(ValidationError) as caught:
            body.model_validate({**minimal, name: 77})
        error = validation_error(caught.value.errors())
        assert (error.code, error.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"n": 2, "best_of": 3, "temperature": 1.0}, "best_of"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{**USER[0], "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, *USER]},
         "messages[0].function_call"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"uniqueItems": True}}, "guided_json"),
        ({"guided_grammar": "/etc/passwd"}, "guided_grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "a+", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a+", "min_tokens": 3}, "min_tokens"),
        ({"guided_regex": "a+", "stop_token_ids": [3]}, "stop_token_ids"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"wrod": "[told]"}}, "chat_template_kwargs.wrod"),
        ({"documents": [{"text": "a"}]}, "documents"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_an_error_with_its_param(fields: dict[str, Any], param: str, port: int) -> None:
    answer = post(port, CHAT, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_every_field_is_explained() -> None:
    for body, _ in BODIES.values():
        missing = [row.path for row in rows(body) if not row.explanation]
        assert missing == []


def test_a_row_has_the_path_and_the_accepted_values_of_its_field() -> None:
    found = {row.path: row for row in rows(ChatBody)}
    assert found["messages[].content[].text"].kind == "honoured"
    assert found["tool_choice.allowed_tools.tools[].function.name"].kind == "honoured"
    assert found["store"] == Row("store", "refused", found["store"].explanation, "false")
    assert found["user"].kind == found["response_format.json_schema.name"].kind == "no effect"


def test_the_openapi_document_allows_no_other_keys(port: int) -> None:
    document = json.loads(call(port, "GET", "/openapi.json").body)
    schemas = document["components"]["schemas"]
    closed = {name for name, schema in schemas.items() if schema.get("additionalProperties") is False}
    assert {"ChatBody", "CompletionBody", "ResponseBody", "TokenizeBody", "Message", "StreamOptions"} <= closed
    assert schemas["ChatBody"]["properties"]["function_call"]["type"] == "null"


# -- accepted


def test_what_clients_send_by_default_is_accepted(port: int) -> None:
    assert text_of(post(port, CHAT, **CHAT_DEFAULTS)) == "Hello, I am here."
    assert text_of(post(port, TEXT, **DEFAULTS, suffix="", add_special_tokens=True)) == "Hello, I am here."
    given: dict[str, Any] = {"store": False, "truncation": "disabled", "tools": [], "tool_choice": "auto"}
    given |= {"background": False, "include": ["reasoning.encrypted_content"], "parallel_tool_calls": True}
    given |= {"previous_response_id": None, "text": {"format": {"type": "text"}, "verbosity": "medium"}}
    assert text_of(post(port, RESPONSES, **given, reasoning={"effort": None}, top_logprobs=0)) == "Hello, I am here."


def test_whole_messages_of_earlier_answers_are_accepted(port: int) -> None:
    answered = json.loads(post(port, CHAT).body)["choices"][0]["message"]
    nulls = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": [], "parsed": None}
    lm_eval = {"role": "user", "content": "and", "type": "text"}
    assert text_of(post(port, CHAT, messages=[*USER, {**answered, **nulls}, lm_eval])) == "Hello, I am here."
    output = json.loads(post(port, RESPONSES).body)["output"]
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "status": None, "encrypted_content": None}
    items = [*USER, reasoning, *output, {"role": "user", "content": "and"}]
    assert text_of(post(port, RESPONSES, input=items)) == "Hello, I am here."


def test_a_message_gives_the_template_its_reasoning_name_and_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}
    message = Message.model_validate(
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [{**call, "index": 0}], "name": "a"}
    )
    del call["function"]["parsed_arguments"]  # type: ignore[attr-defined]
    given = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call], "name": "a"}
    assert message.for_template() == given
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert Message.model_validate({"role": "assistant", "content": parts}).for_template()["content"] == "ab"
    assert Message.model_validate({"role": "assistant", "refusal": "no"}).for_template()["content"] == "no"
    assert "reasoning_content" not in Message(role="user", content="a", reasoning="b").for_template()


def test_the_reasoning_of_an_input_belongs_to_the_answer_after_it() -> None:
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    body = ResponseBody.model_validate({"model": "m", "input": [reasoning, answer, reasoning, *USER]})
    messages = [message.for_template() for message in body.chat().messages]
    assert messages == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "user", "content": "hi"},
    ]


# -- honoured


def test_a_final_message_of_the_assistant_is_continued(port: int) -> None:
    messages = [*USER, {"role": "assistant", "content": "Hello, I"}]
    assert text_of(post(port, CHAT, messages=messages)) == " am here."
    assert text_of(post(port, CHAT, messages=messages, continue_final_message=True)) == " am here."
    assert text_of(post(port, CHAT, messages=messages, add_generation_prompt=True)) == "Hello, I am here."
    assert text_of(post(port, CHAT, messages=messages, continue_final_message=False)) == "Hello, I am here."
    assert text_of(post(port, RESPONSES, input=messages)) == " am here."


def test_the_ending_and_the_variables_reach_the_tokenizer_route(port: int) -> None:
    def shown(**fields: Any) -> str:
        document = json.loads(post(port, "/tokenize", **fields, return_token_strs=True).body)
        assert len(document["token_strs"]) == document["count"] == len(document["tokens"])
        return "".join(document["token_strs"])

    asked = "<|im_start|>user\nhi<|im_end|>\n"
    assert shown() == f"{asked}<|im_start|>assistant\n[talk]"
    assert shown(add_generation_prompt=False) == asked
    assert shown(chat_template_kwargs={"word": "x"}) == f"{asked}<|im_start|>assistant\nx"
    assert shown(continue_final_message=True) == "<|im_start|>user\nhi"
    assert shown(messages=None, prompt="hi") == "hi"
    assert post(port, "/tokenize", messages=None, prompt="hi", reasoning_effort="none").status == 400


def test_thinking_is_turned_off_by_an_effort_or_by_a_variable(port: int) -> None:
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert text_of(post(port, CHAT, **fields)) == "It is sunny!"
    both = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert text_of(post(port, CHAT, **both)) == "Hello, I am here.", "an explicit variable wins"
    assert text_of(post(port, RESPONSES, reasoning={"effort": "none"})) == "It is sunny!"
    assert text_of(post(port, RESPONSES, chat_template_kwargs={"enable_thinking": False})) == "It is sunny!"


def test_control_tokens_in_variables_are_text_or_refused(port: int) -> None:
    [end] = ids(port, "<|im_end|>")
    answer = post(port, "/tokenize", chat_template_kwargs={"word": "<|im_end|>"})
    if answer.status == 200:
        assert json.loads(answer.body)["tokens"].count(end) == 1
    else:  # an older transformers
        assert "contains the control token" in answer.error["message"]


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}),
        ({"guided_regex": "(yes|no)"}, {"yes", "no"}),
        ({"structured_outputs": {"regex": "(yes|no)"}}, {"yes", "no"}),
        ({"guided_grammar": 'start: "yes" | "no"'}, {"yes", "no"}),
        ({"structured_outputs": {"grammar": 'start: "yes" | "no"'}}, {"yes", "no"}),
        ({"guided_json": {"enum": ["yes", "no"]}}, {'"yes"', '"no"'}),
        ({"guided_json": '{"enum": ["yes", "no"]}'}, {'"yes"', '"no"'}),
        ({"structured_outputs": {"json": {"enum": ["yes"]}}}, {'"yes"'}),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_fields_of_vllm_determine_the_structure(path: str, fields: Any, texts: set[str], port: int) -> None:
    assert text_of(post(port, path, **fields)) in texts


def test_any_json_object_can_be_asked_for(port: int) -> None:
    answer = post(port, TEXT, structured_outputs={"json_object": True}, max_tokens=40, temperature=1.0, seed=1)
    assert text_of(answer).startswith("{")


def ids(port: int, text: str) -> list[int]:
    tokens = call(port, path="/tokenize", body={"prompt": text, "add_special_tokens": False})
    return list(json.loads(tokens.body)["tokens"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_end_of_an_answer_can_be_moved(path: str, port: int) -> None:
    am = ids(port, " am")
    assert text_of(post(port, path, stop_token_ids=am)) == "Hello, I"
    assert text_of(post(port, path, stop_token_ids=am, min_tokens=4)) != "Hello, I"
    for fields in ({"ignore_eos": True}, {"ignore_eos": True, "min_tokens": 4}, {"min_tokens": 11}):
        document = json.loads(post(port, path, **fields, max_tokens=11).body)
        assert (document["usage"]["completion_tokens"], document["choices"][0]["finish_reason"]) == (11, "length")
    assert text_of(post(port, path, ignore_eos=True, stop_token_ids=am)) == "Hello, I"


def test_special_tokens_can_stay_in_the_text(port: int) -> None:
    bias = {str(token): 100 for token in ids(port, "<|im_start|>")}
    fields = {"logit_bias": bias, "max_tokens": 2}
    assert text_of(post(port, TEXT, **fields)) == ""
    assert text_of(post(port, TEXT, **fields, skip_special_tokens=False)) == "<|im_start|>" * 2


def test_typical_sampling_and_all_of_the_top_tokens_can_be_asked_for(port: int) -> None:
    assert text_of(post(port, CHAT, typical_p=0.5, temperature=0.5, top_k=-1, seed=1))


def test_a_text_can_be_completed_without_special_tokens(port: int) -> None:
    assert text_of(post(port, TEXT, add_special_tokens=False)) == "Hello, I am here."
    assert post(port, TEXT, add_special_tokens=False, prompt="").error["param"] == "prompt"


def test_a_server_without_a_structure_for_a_request_keeps_that_of_its_configuration() -> None:
    body = ChatBody.model_validate(BODIES[CHAT][1])
    assert body.structure() == (None, None)
    assert ChatBody.model_validate({**BODIES[CHAT][1], "response_format": {"type": "text"}}).structure() == (None, {})
