"""The text that models of each family write after the generation prompt, and the chat templates that they share.

The texts come from the templates' own renderings, the models' documentation and llama.cpp's tests of these templates.
`make test-templates` and the tests compare llmctl with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.families import writing
from support.families.writing import Writer


@dataclass(frozen=True)
class Mode:
    """How a model writes one turn, for some arguments of its template. `{}` stands for the text.

    Attributes:
        arguments: Arguments of the template (`chat.template_kwargs`).
        think: Its reasoning, with everything around it that the prompt does not contain; empty if it has none.
        answer: An answer.
        before: Text before a call; None if a turn is either text or calls.
        bare: What stands before a call without text.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    think: str = ""
    answer: str = "{}"
    before: str | None = "{}"
    bare: str = ""


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: The name of its row.
        templates: Files among llama.cpp's templates.
        write: Writes calls as the model does.
        direct: The mode without reasoning; None if the model always reasons.
        thinking: The mode with reasoning; None if the model has none.
        small: A template of the same structure in `support/templates/families`.
        also: Other ways in which the model writes calls.
        empty: Empty reasoning as the model writes it in the arguments of `direct`; empty if it writes none.
        one_call: The reason why a turn has one call only.
        marks: Text from the format that may stand inside a string value.
        special: Special tokens that do not look like one.
        arguments: Arguments that the template needs always.
        only_with_tools: True if the template fails without tools.
        has_system: False if the template refuses a system message.
        keeps_reasoning: True if the template renders the reasoning of earlier turns in a loop of tool calls.
        direct_after_results: True if the model answers without reasoning after the results of tools.
        reasons: Why a cell is not as it should be, by column or by "template column".
    """

    name: str
    templates: tuple[str, ...]
    write: Writer
    direct: Mode | None = Mode()
    thinking: Mode | None = None
    small: str | None = None
    also: tuple[Writer, ...] = ()
    empty: str = ""
    one_call: str = ""
    marks: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    only_with_tools: bool = False
    has_system: bool = True
    keeps_reasoning: bool = False
    direct_after_results: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def modes(self) -> list[Mode]:
        """The modes, that without reasoning first."""
        return [mode for mode in (self.direct, self.thinking) if mode is not None]


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
_LINE = Mode(before="{}\n")
_TAGS = ("</tool_call>", "<tool_call>")
_LINES = "<think>\n{}\n</think>\n\n"  # written by the model
_OPENED = "{}\n</think>\n\n"  # after a prompt that ends with <think>
_XML = ("</function>", "</parameter>", "</tool_call>", "<parameter=x>")
_KEYS = ("</tool_call>", "</arg_value>", "<arg_key>")
_INVOKE = ("</invoke>", "</parameter>")
_HARMONY = Mode(
    think="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
    answer="<|channel|>final<|message|>{}",
    before="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
)
_COHERE_ANSWER = "<|START_RESPONSE|>{}<|END_RESPONSE|>"

FAMILIES = (
    # -- JSON between tags
    Family(
        "Hermes",
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"),
        writing.hermes,
        direct=_LINE,
        marks=_TAGS,
        only_with_tools=True,
    ),
    Family("Qwen 2.5", ("Qwen-Qwen2.5-7B-Instruct",), writing.hermes, direct=_LINE, marks=_TAGS),
    Family(
        "Granite 4",
        ("ibm-granite-granite-4.0", "ibm-granite-granite-4.1"),
        writing.hermes,
        direct=_LINE,
        small="granite4",
        marks=_TAGS,
    ),
    Family(
        "Qwen 3",
        ("Qwen-Qwen3-0.6B",),
        writing.hermes,
        direct=Mode(OFF, before="{}\n"),
        thinking=Mode(think=_LINES, before="{}\n"),
        small="qwen3",
        empty="<think>\n\n</think>\n\n",
        marks=_TAGS,
        keeps_reasoning=True,
    ),
    Family(
        "MiMo",
        ("MiMo-VL",),
        writing.hermes,
        direct=_LINE,
        thinking=Mode(think="<think>\n{}\n</think>\n", before="{}\n"),
        marks=_TAGS,
    ),
    Family(
        "QwQ", ("Qwen-QwQ-32B",), writing.hermes, direct=_LINE, thinking=Mode(ON, _OPENED, before="{}\n"), marks=_TAGS
    ),
    Family(
        "Bielik",
        ("Bielik-11B-v3.0-Instruct",),
        writing.hermes,
        direct=_LINE,
        thinking=Mode(ON, "{}\n</think>\n", before="{}\n"),
        marks=_TAGS,
        keeps_reasoning=True,
    ),
    Family(
        "Reka Edge",
        ("Reka-Edge",),
        writing.hermes_joined,
        direct=Mode(answer=" {}", before=" {}\n", bare=" "),
        thinking=Mode(ON, _OPENED, before="{}\n"),
        also=(writing.hermes,),
        marks=_TAGS,
        keeps_reasoning=True,
    ),
    Family(
        "SmolLM 3",
        ("HuggingFaceTB-SmolLM3-3B",),
        writing.hermes,
        direct=Mode(OFF, before="{}\n"),
        thinking=Mode(think="<think>\n{}\n</think>\n", before="{}\n"),
        marks=_TAGS,
    ),
    Family("Phi 3.5", ("microsoft-Phi-3.5-mini-instruct",), writing.hermes, direct=_LINE, marks=_TAGS),
    Family("Gemma 2", ("google-gemma-2-2b-it",), writing.hermes, direct=_LINE, marks=_TAGS, has_system=False),
    Family(
        "RWKV",
        ("llama-cpp-rwkv-world",),
        writing.hermes,
        direct=Mode(answer=" {}", before=" {}\n", bare=" "),
        thinking=Mode(ON, _OPENED, before="{}\n"),
        marks=_TAGS,
    ),
    Family(
        "MiniMax M1",
        ("MiniMax-M1",),
        writing.json_lines,
        thinking=Mode(think=_LINES),
        marks=("</tool_calls>",),
    ),
    Family(
        "Apriel 1.5",
        ("unsloth-Apriel-1.5",),
        writing.json_list("<tool_calls>", "</tool_calls>"),
        thinking=Mode(
            think="Here are my reasoning steps:\n{}\n[BEGIN FINAL RESPONSE]\n", answer="{}\n[END FINAL RESPONSE]"
        ),
        marks=("</tool_calls>",),
    ),
    Family(
        "Apriel 1.6",
        ("Apriel-1.6-15b-Thinker-fixed",),
        writing.json_list("<tool_calls>", "</tool_calls>"),
        direct=None,
        thinking=Mode(think="{}\n[BEGIN FINAL RESPONSE]\n", before="{}\n"),
        small="apriel",
        marks=("</tool_calls>",),
    ),
    Family(
        "Nemotron Nano 2",
        ("NVIDIA-Nemotron-Nano-v2",),
        writing.json_list("<TOOLCALL>", "</TOOLCALL>"),
        direct=None,
        thinking=Mode(think=_OPENED, before="{}\n"),
        small="nemotron_nano",
        marks=("</TOOLCALL>",),
        special=("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
    ),
    Family(
        "Command R7B",
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use",),
        writing.cohere,
        direct=Mode(answer=_COHERE_ANSWER, before=None),
        thinking=Mode(ON, "<|START_THINKING|>{}<|END_THINKING|>", answer=_COHERE_ANSWER, before=None),
        small="command_r7b",
        marks=("]",),
        keeps_reasoning=True,
    ),
    Family(
        "North Mini",
        ("Cohere2MoE",),
        writing.cohere,
        direct=Mode({"reasoning": False}, answer="<|START_TEXT|>{}<|END_TEXT|>", before=None),
        thinking=Mode(think="{}<|END_THINKING|>", answer="<|START_TEXT|>{}<|END_TEXT|>", before=None),
        marks=("]",),
        keeps_reasoning=True,
    ),
    Family(
        "Command R+",
        ("CohereForAI-c4ai-command-r-plus-tool_use",),
        writing.command_r_plus,
        direct=Mode(before="{}\n"),
        marks=("```",),
        only_with_tools=True,
    ),
    Family(
        "Granite 3.3",
        ("ibm-granite-granite-3.3-2B-Instruct",),
        writing.json_list("<|tool_call|>"),
        thinking=Mode({"thinking": True}, "<think>{}</think>\n", answer="<response>{}</response>"),
        small="granite33",
        marks=("]",),
    ),
    Family(
        "Llama 3",
        (
            "meta-llama-Llama-3.1-8B-Instruct",
            "meta-llama-Llama-3.2-3B-Instruct",
            "meta-llama-Llama-3.3-70B-Instruct",
        ),
        writing.llama,
        direct=Mode(before=None),
        small="llama31",
        one_call="the template renders one call in a turn",
        marks=(";",),
    ),
    Family(
        "Firefunction",
        ("fireworks-ai-llama-3-firefunction-v2",),
        writing.json_list(" functools"),
        marks=("]",),
        arguments={"functions": '[{"name": "get_weather"}]', "datetime": "1 May"},
    ),
    Family(
        "Apertus",
        ("Apertus-8B-Instruct",),
        writing.apertus,
        thinking=Mode(ON, "<|inner_prefix|>{}<|inner_suffix|>"),
        small="apertus",
        marks=("]",),
    ),
    Family(
        "GigaChat 3",
        ("GigaChat3-10B-A1.8B",),
        writing.gigachat("<|message_sep|>\n\nfunction call<|role_sep|>\n"),
        one_call="the template renders one call in a turn",
        marks=("}",),
    ),
    Family(
        "GigaChat 3.1",
        ("GigaChat3.1-10B-A1.8B",),
        writing.gigachat("<|function_call|>"),
        one_call="the template renders one call in a turn",
        marks=("}",),
    ),
    # -- a name, then JSON
    Family(
        "Mistral Nemo",
        ("mistralai-Mistral-Nemo-Instruct-2407",),
        writing.nemo,
        direct=Mode(before=None),
        small="mistral_nemo",
        marks=("]",),
    ),
    Family(
        "Mistral Small 3.2",
        ("Mistral-Small-3.2-24B-Instruct-2506",),
        writing.mistral(ids=True),
        small="mistral_small",
        marks=("}",),
    ),
    Family("Devstral", ("unsloth-mistral-Devstral-Small-2507",), writing.mistral(ids=False), marks=("}",)),
    Family(
        "Ministral 3",
        ("mistralai-Ministral-3-14B-Reasoning-2512",),
        writing.mistral(ids=False),
        thinking=Mode(think="[THINK]{}[/THINK]"),
        marks=("}",),
    ),
    Family(
        "Kimi K2",
        ("moonshotai-Kimi-K2", "Kimi-K2-Instruct"),
        writing.kimi,
        small="kimi_k2",
        marks=("}",),
    ),
    Family(
        "Kimi K2 Thinking",
        ("Kimi-K2-Thinking",),
        writing.kimi,
        thinking=Mode(think="<think>{}</think>"),
        marks=("}",),
    ),
    Family(
        "DeepSeek R1",
        ("llama-cpp-deepseek-r1",),
        writing.deepseek_r1,
        direct=None,
        thinking=Mode(think=_OPENED),
        small="deepseek_r1",
        marks=("```",),
    ),
    Family(
        "DeepSeek R1 Distill",
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B",),
        writing.deepseek_r1,
        direct=None,
        thinking=Mode(think=_OPENED),
        marks=("```",),
    ),
    Family(
        "DeepSeek R1 Distill, Qwen",
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",),
        writing.deepseek_r1,
        thinking=Mode(ON, _OPENED),
        marks=("```",),
    ),
    Family(
        "DeepSeek V3.1",
        ("deepseek-ai-DeepSeek-V3.1",),
        writing.deepseek_v31,
        thinking=Mode({"thinking": True}, "{}</think>"),
        small="deepseek_v31",
        direct_after_results=True,
        marks=("}",),
    ),
    Family("Functionary 3.1", ("meetkai-functionary-medium-v3.1",), writing.functionary, marks=("</function>",)),
    Family(
        "Functionary 3.2",
        ("meetkai-functionary-medium-v3.2",),
        writing.recipients,
        direct=Mode(answer="all\n{}", before="all\n{}>>>"),
        marks=(">>>get_time\n",),
    ),
    Family(
        "Solar Open",
        ("upstage-Solar-Open-100B",),
        writing.solar,
        direct=Mode({"reasoning_effort": "low"}, answer="<|content|>{}", before=None),
        thinking=Mode(think="<|think|>{}<|end|><|begin|>assistant", answer="<|content|>{}", before=None),
        marks=("}",),
        keeps_reasoning=True,
    ),
    Family(
        "gpt-oss",
        ("openai-gpt-oss-120b",),
        writing.harmony("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
        direct=Mode(answer=_HARMONY.answer, before=_HARMONY.before),
        thinking=_HARMONY,
        small="gpt_oss",
        also=(
            writing.harmony(" to=functions.{name}<|channel|>commentary json<|message|>"),
            writing.harmony(" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>"),
            writing.harmony("<|channel|>commentary to=functions.{name}<|message|>"),
            writing.harmony("<|channel|>analysis to=functions.{name}<|message|>"),
        ),
        one_call="a call ends the turn",
        marks=("}",),
        keeps_reasoning=True,
    ),
    Family(
        "LLM-jp 4.1",
        ("llm-jp-llm-jp-4.1-8b-thinking",),
        writing.harmony(
            " to=functions.{name}<|channel|> commentary <|constrain|>  json<|message|> ",
            between="<|end|><|start|> assistant",
        ),
        direct=Mode(
            answer="<|channel|> final<|message|> {}",
            before="<|channel|> commentary<|message|> {}<|end|><|start|> assistant",
        ),
        thinking=Mode(
            think="<|channel|> analysis<|message|> {}<|end|><|start|> assistant",
            answer="<|channel|> final<|message|> {}",
            before="<|channel|> commentary<|message|> {}<|end|><|start|> assistant",
        ),
        also=(writing.harmony("<|channel|> commentary to=functions.{name}<|message|> "),),
        marks=("}",),
    ),
    # -- tags for each argument
    Family("Qwen 3 Coder", ("Qwen3-Coder",), writing.xml(), direct=Mode(before="{}\n\n"), marks=_XML),
    Family(
        "Qwen 3.5",
        ("Qwen3.5-4B",),
        writing.xml(),
        direct=Mode(OFF, before="{}\n\n"),
        thinking=Mode(think=_OPENED, before="{}\n\n"),
        small="qwen35",
        marks=_XML,
        keeps_reasoning=True,
    ),
    Family(
        "Nemotron 3",
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",),
        writing.xml(),
        direct=Mode(OFF, before="{}\n"),
        thinking=Mode(think="{}\n</think>\n", before="{}\n"),
        marks=_XML,
        keeps_reasoning=True,
    ),
    Family(
        "StepFun 3.5",
        ("StepFun3.5-Flash",),
        writing.xml(between=""),
        direct=None,
        thinking=Mode(think="{}\n</think>\n"),
        marks=_XML,
        keeps_reasoning=True,
    ),
    Family(
        "Seed-OSS",
        ("ByteDance-Seed-OSS",),
        writing.xml(opened="<seed:tool_call>", closed="</seed:tool_call>", multiline=False),
        direct=Mode(before="{}\n\n"),
        thinking=Mode(think="<seed:think>{}</seed:think>\n", before="{}\n\n"),
        small="seed_oss",
        marks=("</function>", "</parameter>", "</tool_call>"),
        special=("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>", "<seed:bos>", "<seed:eos>"),
        keeps_reasoning=True,
    ),
    Family(
        "MiniMax M2",
        ("MiniMax-M2",),
        writing.invoke("<minimax:tool_call>", "</minimax:tool_call>"),
        direct=None,
        thinking=Mode(think=_OPENED, before="{}\n"),
        small="minimax_m2",
        marks=_INVOKE,
        special=("]~b]", "[e~[", "]~!b["),
        keeps_reasoning=True,
    ),
    Family(
        "MiniMax M3",
        ("MiniMax-M3",),
        writing.minimax_m3,
        direct=Mode({"thinking_mode": "disabled"}),
        thinking=Mode(think="<mm:think>{}</mm:think>"),
        empty="</mm:think>",
        marks=("</invoke>", "</city>"),
        special=("]~b]", "[e~[", "]~!b[", "]<]minimax[>["),
        keeps_reasoning=True,
    ),
    Family(
        "DeepSeek V3.2",
        ("deepseek-ai-DeepSeek-V3.2",),
        writing.invoke("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", prefix="｜DSML｜", strings=True),
        direct=Mode(before="{}\n\n", bare="\n\n"),
        thinking=Mode({"thinking": True}, "{}</think>", before="{}\n\n", bare="\n\n"),
        small="deepseek_v32",
        marks=_INVOKE,
        special=("｜DSML｜",),
        keeps_reasoning=True,
    ),
    Family(
        "DeepSeek V4",
        ("deepseek-ai-DeepSeek-V4", "deepseek-ai-DeepSeek-V4-Flash-0731"),
        writing.invoke("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", prefix="｜DSML｜", strings=True),
        direct=Mode(before="{}\n\n", bare="\n\n"),
        thinking=Mode({"thinking": True}, "{}</think>", before="{}\n\n", bare="\n\n"),
        marks=_INVOKE,
        special=("｜DSML｜",),
        keeps_reasoning=True,
    ),
    Family(
        "Muse Glimmer",
        ("muse-glimmer",),
        writing.atem,
        direct=Mode(answer=" to=user<|message|>{}", before=" to=user<|message|>{}<|eom|><|start|>assistant"),
        thinking=Mode(
            think=" to=self<|message|>{}<|eom|><|start|>assistant",
            answer=" to=user<|message|>{}",
            before=" to=user<|message|>{}<|eom|><|start|>assistant",
        ),
        marks=("</atem:invoke>", "</atem:parameter>"),
        keeps_reasoning=True,
    ),
    Family(
        "MiniCPM 5",
        ("openbmb-MiniCPM5-1B",),
        writing.minicpm,
        direct=Mode(OFF, before="{}\n"),
        thinking=Mode(think=_LINES, before="{}\n"),
        marks=("</function>", "</param>"),
        keeps_reasoning=True,
    ),
    # -- keys and values
    Family(
        "GLM 4.6",
        ("GLM-4.6",),
        writing.keys(),
        direct=Mode(OFF, answer="\n{}", before="\n{}\n", bare="\n"),
        thinking=Mode(think="\n<think>{}</think>\n", before="{}\n"),
        small="glm46",
        empty="\n<think></think>\n",
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "GLM 4.7",
        ("GLM-4.7-Flash",),
        writing.keys(newline="", between=""),
        direct=Mode(OFF),
        thinking=Mode(think="{}</think>"),
        small="glm47",
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "Spark 2.5",
        ("Spark2.5",),
        writing.keys(newline="", between=""),
        direct=Mode(OFF),
        thinking=Mode(think="{}</think>"),
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "Ling 3",
        ("inclusionai-ling-3.0-flash",),
        writing.keys(joined=True),
        also=(writing.keys(),),
        direct=Mode(OFF, before="{}\n"),
        thinking=Mode(think="{}\n</think>\n", before="{}\n"),
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "Laguna XS",
        ("poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2"),
        writing.keys(),
        direct=Mode(answer="\n{}", before="\n{}\n", bare="\n"),
        thinking=Mode(ON, "{}\n</think>\n", before="{}\n"),
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "Laguna S",
        ("poolside-Laguna-S-2.1",),
        writing.keys(newline="", between=""),
        direct=Mode(OFF),
        thinking=Mode(think="{}</think>"),
        marks=_KEYS,
        keeps_reasoning=True,
    ),
    Family(
        "Hunyuan 3",
        ("tencent-Hy3",),
        writing.hunyuan,
        thinking=Mode({"reasoning_effort": "high"}, "{}</think:opensource>"),
        marks=("</tool_call:opensource>", "</arg_value:opensource>"),
        keeps_reasoning=True,
    ),
    Family(
        "Kimi K3",
        ("Kimi-K3",),
        writing.kimi_k3,
        direct=Mode(
            {"thinking": False},
            answer="{}<|close|>response<|sep|><|close|>message<|sep|>",
            before="{}<|close|>response<|sep|>",
            bare="<|close|>response<|sep|>",
        ),
        thinking=Mode(
            think="{}<|close|>think<|sep|>",
            answer="<|open|>response<|sep|>{}<|close|>response<|sep|><|close|>message<|sep|>",
            before="<|open|>response<|sep|>{}<|close|>response<|sep|>",
            bare="<|open|>response<|sep|><|close|>response<|sep|>",
        ),
        marks=("argument", "}"),
        keeps_reasoning=True,
    ),
    # -- other syntaxes
    Family(
        "LFM 2",
        ("LFM2-8B-A1B", "LFM2.5-Instruct"),
        writing.python_quoted,
        small="lfm2",
        also=(writing.python,),
        marks=("]", ")"),
    ),
    Family(
        "LFM 2.5",
        ("LFM2.5-8B-A1B",),
        writing.python_quoted,
        thinking=Mode(think="<think>{}</think>"),
        small="lfm25",
        also=(writing.python,),
        marks=("]", ")"),
        keeps_reasoning=True,
    ),
    Family(
        "Gemma 4",
        ("google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
        writing.gemma,
        thinking=Mode(ON, "<|channel>thought\n{}\n<channel|>"),
        small="gemma4",
        marks=("}",),
        keeps_reasoning=True,
    ),
)
