"""Tool calls as the models of each family write them. Nothing here knows how llmctl reads them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = tuple[str, Mapping[str, Any]]
Writer = Callable[[Sequence[Call]], str]

_ID = "abcdefgh"  # with a digit after it: nine letters and digits, as Mistral's models write them


def json_text(value: Any) -> str:
    """Return JSON as models and `tojson` write it."""
    return json.dumps(value, ensure_ascii=False)


def bare(value: Any) -> str:
    """Return a value as formats with tags hold it: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json_text(value)


def _object(name: str, arguments: Any, key: str = "arguments", **more: Any) -> str:
    return json_text({"name": name, key: arguments, **more})


# -- JSON objects


def hermes(calls: Sequence[Call]) -> str:
    """Qwen 2.5 and 3, Hermes, Granite 4: one object in each pair of tags."""
    return "\n".join(f"<tool_call>\n{_object(*call)}\n</tool_call>" for call in calls)


def hermes_joined(calls: Sequence[Call]) -> str:
    """Reka Edge: the same without a newline between calls."""
    return hermes(calls).replace("</tool_call>\n<tool_call>", "</tool_call><tool_call>")


def json_list(before: str, after: str = "") -> Writer:
    """Return a writer of one list of objects between two marks."""
    return lambda calls: f"{before}[{', '.join(_object(*call) for call in calls)}]{after}"


def json_lines(calls: Sequence[Call]) -> str:
    """MiniMax M1: an object in each line between one pair of tags."""
    return "<tool_calls>\n" + "".join(f"{_object(*call)}\n" for call in calls) + "</tool_calls>"


def nemo(calls: Sequence[Call]) -> str:
    """Mistral Nemo: a list of objects with ids."""
    objects = [_object(*call, id=f"{_ID}{number}") for number, call in enumerate(calls)]
    return f"[TOOL_CALLS][{', '.join(objects)}]"


def llama(calls: Sequence[Call]) -> str:
    """Llama 3: an object without marks; several are separated by semicolons."""
    return "; ".join(_object(*call, key="parameters") for call in calls)


def apertus(calls: Sequence[Call]) -> str:
    """Apertus: a list of objects whose key is the name."""
    objects = ", ".join(json_text({name: arguments}) for name, arguments in calls)
    return f"<|tools_prefix|>[{objects}]<|tools_suffix|>"


def cohere(calls: Sequence[Call]) -> str:
    """Command R7B: a list of numbered actions."""
    actions = [
        f'    {{"tool_call_id": "{number}", "tool_name": "{name}", "parameters": {json_text(arguments)}}}'
        for number, (name, arguments) in enumerate(calls)
    ]
    return "<|START_ACTION|>[\n" + ",\n".join(actions) + "\n]<|END_ACTION|>"


def command_r_plus(calls: Sequence[Call]) -> str:
    """Command R+: an indented list in a block of code."""
    actions = [{"tool_name": name, "parameters": arguments} for name, arguments in calls]
    return f"Action:\n```json\n{json.dumps(actions, indent=4, ensure_ascii=False)}\n```"


# -- a name, then JSON


def mistral(*, ids: bool) -> Writer:
    """Return a writer for Mistral Small 3.2 (with ids) or Devstral and Ministral (without)."""

    def write(calls: Sequence[Call]) -> str:
        return "".join(
            f"[TOOL_CALLS]{name}{f'[CALL_ID]{_ID}{number}' if ids else ''}[ARGS]{json_text(arguments)}"
            for number, (name, arguments) in enumerate(calls)
        )

    return write


def kimi(calls: Sequence[Call]) -> str:
    """Kimi K2: a section of calls whose ids contain the names."""
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{json_text(arguments)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def deepseek_r1(calls: Sequence[Call]) -> str:
    """DeepSeek R1 and V3: the type, the name, then JSON in a block of code."""
    inner = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json_text(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def deepseek_v31(calls: Sequence[Call]) -> str:
    """DeepSeek V3.1: the name, then JSON."""
    inner = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json_text(arguments)}<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def functionary(calls: Sequence[Call]) -> str:
    """Functionary 3.1: the name in a tag around JSON."""
    return "".join(f"<function={name}>{json_text(arguments)}</function>" for name, arguments in calls)


def recipients(calls: Sequence[Call]) -> str:
    """Functionary 3.2: the prompt ends with the mark of the first recipient."""
    return ">>>".join(f"{name}\n{json_text(arguments)}" for name, arguments in calls)


def gigachat(before: str) -> Writer:
    """Return a writer for GigaChat: a mark, then one object."""
    return lambda calls: "".join(before + _object(*call) for call in calls)


def solar(calls: Sequence[Call]) -> str:
    """Solar Open: ids that the model chooses, names and JSON between marks."""
    inner = "".join(
        f"<|tool_call:begin|>{_ID}{number}<|tool_call:name|>{name}<|tool_call:args|>{json_text(arguments)}<|tool_call:end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls|>{inner}"


def harmony(head: str, *, between: str = "<|call|><|start|>assistant") -> Writer:
    """Return a writer of messages to functions. `head` is a message's header with {name}."""

    def write(calls: Sequence[Call]) -> str:
        return between.join(head.replace("{name}", name) + json_text(arguments) for name, arguments in calls)

    return write


# -- tags for each argument


def xml(
    *, opened: str = "<tool_call>", closed: str = "</tool_call>", between: str = "\n", multiline: bool = True
) -> Writer:
    """Return a writer of <function=…> with <parameter=…>: Qwen 3 Coder and 3.5, Nemotron 3, StepFun, Seed-OSS."""

    def write(calls: Sequence[Call]) -> str:
        new = "\n" if multiline else ""
        blocks = []
        for name, arguments in calls:
            inner = "".join(f"<parameter={k}>{new}{bare(v)}{new}</parameter>\n" for k, v in arguments.items())
            blocks.append(f"{opened}\n<function={name}>\n{inner}</function>\n{closed}")
        return between.join(blocks)

    return write


def invoke(opened: str, closed: str, *, prefix: str = "", strings: bool = False, each: bool = False) -> Writer:
    """Return a writer of <invoke name=…> with <parameter name=…>: MiniMax M2, DeepSeek V3.2 and V4.

    Args:
        strings: True if each parameter says whether it is a string.
        each: True if each call has its own marks.
    """

    def one(name: str, arguments: Mapping[str, Any]) -> str:
        lines = [f'<{prefix}invoke name="{name}">']
        for key, value in arguments.items():
            kind = f' string="{str(isinstance(value, str)).lower()}"' if strings else ""
            lines.append(f'<{prefix}parameter name="{key}"{kind}>{bare(value)}</{prefix}parameter>')
        return "\n".join([*lines, f"</{prefix}invoke>"])

    def write(calls: Sequence[Call]) -> str:
        if each:
            return "".join(f"{opened}\n{one(*call)}\n{closed}" for call in calls)
        return f"{opened}\n" + "".join(f"{one(*call)}\n" for call in calls) + closed

    return write


def atem(calls: Sequence[Call]) -> str:
    """Muse Glimmer: each call is a message to the function."""
    block = invoke("<atem:function_calls>", "</atem:function_calls>", prefix="atem:")
    return "<|eom|><|start|>assistant".join(f" to={call[0]}<|message|>{block([call])}" for call in calls)


def keys(*, newline: str = "\n", between: str = "\n", joined: bool = False, sep: str = "", suffix: str = "") -> Writer:
    """Return a writer of <arg_key> and <arg_value>: GLM, Spark, Ling, Laguna, Hunyuan.

    Args:
        newline: Text after the name and after each key.
        between: Text between two calls.
        joined: True if nothing is between a value and the next key.
        sep: A mark after the name.
        suffix: Text at the end of each tag's name.
    """

    def write(calls: Sequence[Call]) -> str:
        blocks = []
        for name, arguments in calls:
            inner = ("" if joined else newline).join(
                f"<arg_key{suffix}>{k}</arg_key{suffix}>{newline}<arg_value{suffix}>{bare(v)}</arg_value{suffix}>"
                for k, v in arguments.items()
            )
            blocks.append(f"<tool_call{suffix}>{name}{sep}{newline}{inner}{newline}</tool_call{suffix}>")
        return between.join(blocks)

    return write


def hunyuan(calls: Sequence[Call]) -> str:
    """Hunyuan 3: keys and values in a section; every tag has a suffix."""
    inner = keys(sep="<tool_sep:opensource>", suffix=":opensource")(calls)
    return f"<tool_calls:opensource>\n{inner}\n</tool_calls:opensource>"


def minicpm(calls: Sequence[Call]) -> str:
    """MiniCPM 5: values with markup are CDATA."""
    blocks = []
    for name, arguments in calls:
        values = {key: bare(value) for key, value in arguments.items()}
        for key, value in values.items():
            if any(mark in value for mark in "<&\n"):
                values[key] = f"<![CDATA[{value}]]>"
        inner = "".join(f'<param name="{key}">{value}</param>' for key, value in values.items())
        blocks.append(f'<function name="{name}">{inner}</function>')
    return "\n".join(blocks)


_NS = "]<]minimax[>["


def minimax_m3(calls: Sequence[Call]) -> str:
    """MiniMax M3: a tag for each key, nested for objects and lists, each after a mark."""

    def nested(tag: str, value: Any) -> str:
        if isinstance(value, Mapping):
            inner = "".join(nested(key, part) for key, part in value.items())
        elif isinstance(value, list):
            inner = "".join(nested("item", part) for part in value)
        else:
            inner = bare(value)
        return f"{_NS}<{tag}>{inner}{_NS}</{tag}>"

    blocks = [
        f'{_NS}<invoke name="{name}">' + "".join(nested(*one) for one in arguments.items()) + f"{_NS}</invoke>\n"
        for name, arguments in calls
    ]
    return f"{_NS}<tool_call>\n{''.join(blocks)}{_NS}</tool_call>"


def kimi_k3(calls: Sequence[Call]) -> str:
    """Kimi K3: every tag is text between marks, and arguments have types."""
    types = {str: "string", int: "number", float: "number", bool: "boolean", dict: "object", list: "array"}
    blocks = []
    for number, (name, arguments) in enumerate(calls, 1):
        inner = "".join(
            f'<|open|>argument key="{key}" type="{types[type(value)]}"<|sep|>{bare(value)}<|close|>argument<|sep|>'
            for key, value in arguments.items()
        )
        blocks.append(f'<|open|>call tool="{name}" index="{number}"<|sep|>{inner}<|close|>call<|sep|>')
    return f"<|open|>tools<|sep|>{''.join(blocks)}<|close|>tools<|sep|><|close|>message<|sep|>"


# -- other syntaxes


def python(calls: Sequence[Call]) -> str:
    """LFM2: calls in Python's syntax."""
    inner = ", ".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls)
    return f"<|tool_call_start|>[{inner}]<|tool_call_end|>"


def python_quoted(calls: Sequence[Call]) -> str:
    """LFM2: the same with JSON's strings and constants."""
    inner = ", ".join(
        f"{name}({', '.join(f'{k}={json_text(v)}' for k, v in arguments.items())})" for name, arguments in calls
    )
    return f"<|tool_call_start|>[{inner}]<|tool_call_end|>"


def gemma(calls: Sequence[Call]) -> str:
    """Gemma 4: keys without quotes, and strings between <|"|>."""

    def value(part: Any) -> str:
        if isinstance(part, str):
            return f'<|"|>{part}<|"|>'
        if isinstance(part, Mapping):
            return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in part.items()) + "}"
        if isinstance(part, list):
            return "[" + ",".join(map(value, part)) + "]"
        return json_text(part)

    return "".join(f"<|tool_call>call:{name}{value(arguments)}<tool_call|>" for name, arguments in calls)
