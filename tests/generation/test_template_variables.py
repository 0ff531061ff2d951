"""The variables of a chat template are found in its source, and thinking is set by those that it has."""

from pathlib import Path
from typing import Any

import pytest

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.prompt import check_chat, encode_prompt
from llmctl.generation.template_variables import (
    effort_arguments,
    read_variables,
    template_variables,
    thinking_arguments,
)
from llmctl.model.tokenizer import load_tokenizer
from support.tiny import CHATML, write_tokenizer

# the ways in which templates of real families read a switch
QWEN = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
SMOLLM = "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}"
NEMOTRON = "{% set enable_thinking = enable_thinking if enable_thinking is defined else True %}{{ enable_thinking }}"
DEEPSEEK = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% if thinking %}<think>{% endif %}"
MINIMAX = '{% if thinking_mode is defined and thinking_mode == "disabled" %}</think>{% endif %}'
SEED = "{% if thinking_budget is defined %}{% if thinking_budget == 0 %}no{% endif %}{% endif %}"
HUNYUAN = "{% if reasoning_effort not in ['high', 'low', 'no_think'] %}{{ raise_exception('x') }}{% endif %}"
GPT_OSS = (
    '{% if reasoning_effort is not defined %}{% set reasoning_effort = "medium" %}{% endif %}{{ reasoning_effort }}'
)
BOTH = "{% if thinking and reasoning_effort == 'max' %}x{% endif %}"


def test_names_that_a_template_sets_itself_are_no_variables() -> None:
    source = """
        {%- macro show(value, depth=1) %}{{ value }}{{ depth }}{{ inner }}{% endmacro %}
        {%- for message in messages if message.role != hidden %}
            {%- if message.content is string %}{% set content = message.content %}
            {%- elif message.parts %}{% set content = message.parts[0] %}
            {%- else %}{% set content = '' %}{% endif %}
            {{- content }}{{ loop.index }}{{ show(content) }}
        {%- else %}{{ nothing }}{% endfor %}
        {%- set ns = namespace(found=false) %}{% set ns.found = true %}{% if ns.found %}{% set part = 1 %}{% endif %}
        {%- set text %}{{ greeting | default('hi') }}{% endset %}{{ text }}{{ part }}{{ tools }}{{ documents }}
        {%- generation %}{{ strftime_now(date_format) }}{% endgeneration %}
        {%- with a = outer %}{{ a }}{% endwith %}{% call(b) show(1) %}{{ b }}{{ called }}{% endcall %}
    """
    names = ["called", "date_format", "documents", "greeting", "hidden", "inner", "nothing", "outer", "part"]
    assert list(read_variables(source)) == names


def test_the_texts_to_which_a_variable_is_compared_are_known() -> None:
    assert read_variables("{% if (mode | lower) == 'a' or mode in ['b', 'c'] or mode != other %}{% endif %}") == {
        "mode": ["a", "b", "c"],
        "other": [],
    }


def test_an_invalid_template_is_an_error() -> None:
    with pytest.raises(UserError, match="the chat template refuses"):
        template_variables("{% if %}")


def test_constant_expressions_are_not_computed() -> None:
    assert read_variables("{{ 10**100000000 }}{{ '%0999999999d' % 1 }}{{ name }}") == {"name": []}


@pytest.mark.parametrize(
    ("template", "on", "off"),
    [
        (QWEN, {"enable_thinking": True}, {"enable_thinking": False}),
        (SMOLLM, {"enable_thinking": True}, {"enable_thinking": False}),
        (NEMOTRON, {"enable_thinking": True}, {"enable_thinking": False}),
        (DEEPSEEK, {"thinking": True}, {"thinking": False}),
        (MINIMAX, {"thinking_mode": "enabled"}, {"thinking_mode": "disabled"}),
        (SEED, {}, {"thinking_budget": 0}),
        (HUNYUAN, {"reasoning_effort": "high"}, {"reasoning_effort": "no_think"}),
        (GPT_OSS, {}, None),
        (CHATML, None, None),
    ],
)
def test_thinking_is_set_by_the_variable_that_the_template_has(template: str, on: Any, off: Any) -> None:
    variables = read_variables(template)
    for thinking, expected in ((True, on), (False, off)):
        if expected is None:
            with pytest.raises(UserError, match="cannot turn thinking"):
                thinking_arguments(variables, thinking)
        else:
            assert thinking_arguments(variables, thinking) == expected


@pytest.mark.parametrize(
    ("template", "effort", "expected"),
    [
        (GPT_OSS, "low", {"reasoning_effort": "low"}),
        (BOTH, "max", {"thinking": True, "reasoning_effort": "max"}),
        (BOTH, "none", {"thinking": False}),
        (QWEN, "none", {"enable_thinking": False}),
        (HUNYUAN, "none", {"reasoning_effort": "no_think"}),
        (QWEN, "high", None),
        (GPT_OSS, "none", None),
        (CHATML, "none", None),
    ],
)
def test_an_effort_is_given_to_a_template_that_knows_it(template: str, effort: str, expected: Any) -> None:
    variables = read_variables(template)
    if expected is not None:
        assert effort_arguments(variables, effort) == expected
        return
    with pytest.raises(UserError) as caught:
        effort_arguments(variables, effort)
    assert caught.value.details == {"param": "reasoning_effort"}


def tokenizer_with(folder: Path, template: str | None) -> Any:
    write_tokenizer(folder, template=template)
    return load_tokenizer(folder, {"padding_side": "left"}, source="acme/tiny")


def test_the_configured_thinking_and_variables_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "{{ enable_thinking }} {{ mood }}")
    chat = ChatSection(thinking=False, template_kwargs={"mood": "calm"})
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", chat).ids) == "False calm"
    chat = ChatSection(thinking=False, template_kwargs={"enable_thinking": True})
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", chat).ids) == "True ", "an explicit variable wins"


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "tools", "tokenize", "sanitize_control_tokens", "ns"])
def test_a_variable_that_the_template_does_not_read_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "{% set ns = 1 %}{{ messages }}{{ tools }}{{ enable_thinking }}{{ ns }}")
    chat = ChatSection(template_kwargs={name: True})
    for check in (check_chat, lambda tokenizer, chat: encode_prompt(tokenizer, "hi", chat)):
        with pytest.raises(UserError, match=f"has no variable {name}; it has enable_thinking") as caught:
            check(tokenizer, chat)
        assert caught.value.details == {"param": f"chat_template_kwargs.{name}"}
        assert ("did you mean enable_thinking?" in caught.value.message) == (name == "enable_thinkin")


@pytest.mark.parametrize("chat", [ChatSection(thinking=True), ChatSection(template_kwargs={"a": 1})])
def test_settings_of_the_template_need_one(chat: ChatSection, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, None)
    for check in (check_chat, lambda tokenizer, chat: encode_prompt(tokenizer, "hi", chat)):
        with pytest.raises(UserError, match="needs a chat template, and this model has none"):
            check(tokenizer, chat)
    check_chat(tokenizer, chat.model_copy(update={"raw": True}))


def test_the_template_for_tools_has_variables_of_its_own(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, None)
    tokenizer.chat_template = {"default": "{{ plain }}", "tool_use": "{{ tools[0].function.name }} {{ style }}"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat = ChatSection(template_kwargs={"style": "short"})
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", chat, tools=tools).ids) == "f short"
    with pytest.raises(UserError, match="no variable style; it has plain"):
        encode_prompt(tokenizer, "hi", chat)
