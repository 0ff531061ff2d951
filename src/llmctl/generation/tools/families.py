"""The tool-call formats of model families, and the tokens in a template that select them.

A format that is not here is guessed from renderings (`recognition`). Where a family's template renders calls, its
renderings decide the white space between the marks of the format.
"""

from dataclasses import replace

from llmctl.generation.marks import ID, INDEX, NAME, TYPE
from llmctl.generation.tools.arguments import (
    TaggedArguments,
)
from llmctl.generation.tools.elements import ElementArguments
from llmctl.generation.tools.format import HERMES, ToolFormat, between_marks
from llmctl.generation.tools.literal_arguments import GemmaArguments, PythonArguments

_LLAMA = ToolFormat("llama", open="", close="", begin='{"name": "', middle='", "parameters": ', between=None, end="}")


def _json_list(name: str, opened: str, closed: str) -> ToolFormat:
    """Return the format of a JSON list of calls between two marks."""
    begin = f'{opened}[{{"name": "'
    return ToolFormat(name, open=opened, close=closed, begin=begin, between='}, {"name": "', end=f"}}]{closed}")


def _tagged(
    name: str,
    syntax: TaggedArguments,
    *,
    block: tuple[str, str],
    call: tuple[str, str, str],
    between: str | None = None,
    marks: tuple[str, str] | None = None,
) -> ToolFormat:
    """Return a format with tagged arguments.

    Args:
        block: The parts before and after all calls of a block.
        call: The parts before the name, after the name, and after the arguments.
        between: The part between two calls; by default, each call has its own block.
        marks: The opening and closing marker, if they are not the parts of `block` without white space.
    """
    opened, closed = marks or (block[0].strip(), block[1].strip())
    begin, end = block[0] + call[0], call[2] + block[1]
    further = f"{call[2]}{between}{call[0]}" if between is not None else f"{end}\n{begin}"
    is_fixed = bool({INDEX, NAME, TYPE} & {*begin, *call[1], *further, *syntax.key_close})
    return ToolFormat(name, syntax, opened, closed, begin, call[1], further, end, is_fixed=is_fixed)


_M3 = "]<]minimax[>["
_QWEN_XML = TaggedArguments("<parameter=", ">\n", "\n</parameter>\n")
_GLM = TaggedArguments("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
_DSML = TaggedArguments('<｜DSML｜parameter name="', f'" string="{TYPE}">', "</｜DSML｜parameter>\n")
_INVOKE = TaggedArguments('<parameter name="', '">', "</parameter>\n")
_HY3 = TaggedArguments(
    "<arg_key:opensource>", "</arg_key:opensource>\n<arg_value:opensource>", "</arg_value:opensource>\n"
)
_KIMI_K3 = TaggedArguments(
    '<|open|>argument key="',
    f'" type="{TYPE}"<|sep|>',
    "<|close|>argument<|sep|>",
    string_type="string",
    other_type=None,
)
_DEEPSEEK_V3_1 = ToolFormat(
    "deepseek",
    open="<｜tool▁calls▁begin｜>",
    close="<｜tool▁calls▁end｜>",
    begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    between="<｜tool▁call▁end｜><｜tool▁call▁begin｜>",
    end="<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
)
_DEEPSEEK_R1 = replace(
    _DEEPSEEK_V3_1,
    begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    between="\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    end="\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    others=(_DEEPSEEK_V3_1,),
)
_MISTRAL_WITHOUT_ID = _json_list("mistral", "[TOOL_CALLS]", "")
_MISTRAL = replace(
    _MISTRAL_WITHOUT_ID,
    between=f', "id": "{ID}"}}, {{"name": "',
    end=f', "id": "{ID}"}}]',
)
_MISTRAL_NAMED = ToolFormat(
    "mistral",
    open="[TOOL_CALLS]",
    close="",
    begin="[TOOL_CALLS]",
    middle="[ARGS]",
    between="[TOOL_CALLS]",
    end="",
)
_MISTRAL_WITH_ID = replace(_MISTRAL_NAMED, middle=f"[CALL_ID]{ID}[ARGS]")
_MISTRAL_BARE = replace(_MISTRAL_NAMED, middle="")
_MISTRAL_ALL = (_MISTRAL_NAMED, _MISTRAL_WITH_ID, _MISTRAL_BARE, _MISTRAL, _MISTRAL_WITHOUT_ID)


_LFM = ToolFormat(
    "lfm",
    PythonArguments(),
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_call_start|>[",
    "(",
    "), ",
    ")]<|tool_call_end|>",
)


def _dsml(block: str) -> ToolFormat:
    return _tagged(
        "deepseek",
        _DSML,
        block=(f"<｜DSML｜{block}>\n", f"</｜DSML｜{block}>"),
        call=('<｜DSML｜invoke name="', '">\n', "</｜DSML｜invoke>\n"),
        between="",
    )


# Formats by the texts that must all be in a template's source or renderings. The first row that matches is used.
FAMILIES: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (
        ("<|channel|>", "<|message|>", "<|constrain|> json"),  # LLM-jp
        ToolFormat(
            "harmony",
            open="",
            close="",
            begin=" to=functions.",
            middle="<|channel|> commentary <|constrain|>  json<|message|> ",
            between="<|end|><|start|> assistant to=functions.",
            end="",
            is_fixed=True,
        ),
    ),
    (
        ("<|channel|>", "<|message|>"),
        ToolFormat(
            "harmony",
            open="",
            close="",
            begin="<|channel|>commentary to=functions.",
            middle=" <|constrain|>json<|message|>",
            between=None,
            end="",
            is_fixed=True,
        ),
    ),
    (
        ("<|tool_calls_section_begin|>",),
        ToolFormat(
            "kimi",
            open="<|tool_calls_section_begin|>",
            close="<|tool_calls_section_end|>",
            begin="<|tool_calls_section_begin|><|tool_call_begin|>functions.",
            middle=f":{INDEX}<|tool_call_argument_begin|>",
            between="<|tool_call_end|><|tool_call_begin|>functions.",
            end="<|tool_call_end|><|tool_calls_section_end|>",
            is_fixed=True,
        ),
    ),
    (
        ("<|open|>tools<|sep|>",),
        _tagged(
            "kimi",
            _KIMI_K3,
            block=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
            call=('<|open|>call tool="', f'" index="{INDEX}"<|sep|>', "<|close|>call<|sep|>"),
            between="",
        ),
    ),
    (("｜DSML｜", "function_calls"), _dsml("function_calls")),
    (("｜DSML｜", "tool_calls"), _dsml("tool_calls")),
    (("<｜tool▁calls▁begin｜>", "```json"), _DEEPSEEK_R1),
    (("<｜tool▁calls▁begin｜>",), replace(_DEEPSEEK_V3_1, others=(_DEEPSEEK_R1,))),
    (
        (_M3,),
        ToolFormat(
            "minimax",
            ElementArguments(_M3),
            open=f"{_M3}<tool_call>",
            close=f"{_M3}</tool_call>",
            begin=f'{_M3}<tool_call>\n{_M3}<invoke name="',
            middle='">',
            between=f'{_M3}</invoke>\n{_M3}<invoke name="',
            end=f"{_M3}</invoke>\n{_M3}</tool_call>",
            is_fixed=True,
        ),
    ),
    (
        ("<minimax:tool_call>",),
        _tagged(
            "minimax",
            _INVOKE,
            block=("<minimax:tool_call>\n", "</minimax:tool_call>"),
            call=('<invoke name="', '">\n', "</invoke>\n"),
            between="",
        ),
    ),
    (
        ("<atem:function_calls>",),
        _tagged(
            "muse",
            TaggedArguments('<atem:parameter name="', '">', "</atem:parameter>\n"),
            block=("<atem:function_calls>\n", "</atem:function_calls>"),
            call=('<atem:invoke name="', '">\n', "</atem:invoke>\n"),
            between=f"</atem:function_calls><|eom|><|start|>assistant to={NAME}<|message|><atem:function_calls>\n",
        ),
    ),
    (
        ("<seed:tool_call>",),
        _tagged(
            "seed",
            TaggedArguments("<parameter=", ">", "</parameter>\n"),
            block=("<seed:tool_call>\n", "</seed:tool_call>"),
            call=("<function=", ">\n", "</function>\n"),
        ),
    ),
    (
        ("<tool_calls:opensource>",),
        _tagged(
            "hunyuan",
            _HY3,
            block=("<tool_calls:opensource>\n", "</tool_calls:opensource>"),
            call=("<tool_call:opensource>", "<tool_sep:opensource>\n", "</tool_call:opensource>\n"),
            between="",
        ),
    ),
    (
        ("<function name=", "<param name="),
        _tagged(
            "minicpm",
            TaggedArguments('<param name="', '">', "</param>", has_cdata=True),
            block=("", ""),
            call=('<function name="', '">', "</function>"),
            between="\n",
            marks=('<function name="', "</function>"),
        ),
    ),
    (
        ("<tool_call>", "<function=", "<parameter="),
        _tagged(
            "qwen-xml",
            _QWEN_XML,
            block=("<tool_call>\n", "</tool_call>"),
            call=("<function=", ">\n", "</function>\n"),
        ),
    ),
    (("<tool_call>", "<arg_key>"), _tagged("glm", _GLM, block=("<tool_call>", "</tool_call>"), call=("", "\n", ""))),
    (
        ("<function=", "</function>"),
        ToolFormat(
            "functionary",
            open="<function=",
            close="</function>",
            begin="<function=",
            middle=">",
            between="</function><function=",
            end="</function>",
        ),
    ),
    (
        (">>>all",),
        ToolFormat("functionary", open="", close="", begin="", middle="\n", between=">>>", end=""),
    ),
    (("<|tool_call_start|>",), _LFM),
    (("<|tool_list_start|>",), _LFM),
    (
        ("<|tool_call>", "<tool_call|>"),
        ToolFormat(
            "gemma",
            GemmaArguments(),
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_call>call:",
            "{",
            "}<tool_call|><|tool_call>call:",
            "}<tool_call|>",
        ),
    ),
    (
        ("<|START_ACTION|>",),
        ToolFormat(
            "command-r",
            open="<|START_ACTION|>",
            close="<|END_ACTION|>",
            begin=f'<|START_ACTION|>[\n    {{"tool_call_id": "{INDEX}", "tool_name": "',
            middle='", "parameters": ',
            between=f'}},\n    {{"tool_call_id": "{INDEX}", "tool_name": "',
            end="}\n]<|END_ACTION|>",
            is_fixed=True,
        ),
    ),
    (
        ("Action:", "```json", "tool_name"),
        ToolFormat(
            "command-r",
            open="Action:",
            close="```",
            begin='Action:\n```json\n[\n    {\n        "tool_name": "',
            middle='",\n        "parameters": ',
            between='\n    },\n    {\n        "tool_name": "',
            end="\n    }\n]\n```",
            is_fixed=True,
        ),
    ),
    (("[TOOL_CALLS]", "[CALL_ID]"), replace(_MISTRAL_WITH_ID, others=_MISTRAL_ALL)),
    (("[TOOL_CALLS]", "[ARGS]"), replace(_MISTRAL_NAMED, others=_MISTRAL_ALL)),
    (("[TOOL_CALLS]",), replace(_MISTRAL, others=_MISTRAL_ALL)),
    (("<TOOLCALL>",), _json_list("nemotron", "<TOOLCALL>", "</TOOLCALL>")),
    (
        ("<|tools_prefix|>",),
        ToolFormat(
            "apertus",
            open="<|tools_prefix|>",
            close="<|tools_suffix|>",
            begin='<|tools_prefix|>[{"',
            middle='": ',
            between='}, {"',
            end="}]<|tools_suffix|>",
        ),
    ),
    (
        ("<|tool_calls|>", "<|tool_call:begin|>"),
        ToolFormat(
            "solar",
            open="<|tool_calls|>",
            close="<|tool_call:end|>",
            begin=f"<|tool_calls|><|tool_call:begin|>{ID}<|tool_call:name|>",
            middle="<|tool_call:args|>",
            between=f"<|tool_call:end|><|tool_call:begin|>{ID}<|tool_call:name|>",
            end="<|tool_call:end|>",
        ),
    ),
    (("<|tool_call|>", "<|/tool_call|>"), _json_list("phi", "<|tool_call|>", "<|/tool_call|>")),
    (("<|tool_call|>",), _json_list("granite", "<|tool_call|>", "")),
    (("<|function_call|>",), between_marks("gigachat", "<|function_call|>", "")),
    (("function call<|role_sep|>",), between_marks("gigachat", "<|message_sep|>\n\nfunction call<|role_sep|>\n", "")),
    (("<tool_calls>[",), _json_list("apriel", "<tool_calls>", "</tool_calls>")),
    (
        ("<tool_calls>",),
        ToolFormat(
            "minimax",
            open="<tool_calls>",
            close="</tool_calls>",
            begin='<tool_calls>\n{"name": "',
            between='}\n{"name": "',
            end="}\n</tool_calls>",
        ),
    ),
    (("functools[",), _json_list("functools", "functools", "")),
    (("<tool_call>",), HERMES),
    (('{"name": "', '"parameters": ', "only supports single"), _LLAMA),
)


def family_format(text: str) -> ToolFormat | None:
    """Return the format of the family whose tokens are in a template's source and renderings, or None."""
    return next((form for tokens, form in FAMILIES if all(token in text for token in tokens)), None)
