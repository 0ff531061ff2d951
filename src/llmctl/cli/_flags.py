"""The table of flags that set configuration keys or belong to several commands.

A row is all that a flag needs: options, help, the mapping to the configuration and chat's `/set` follow from it. A
command names the groups and single flags that it takes; flags of one command alone are defined in its file.
"""

from typing import Any

from llmctl.cli._flag import Flag, file, files, integer, setting, settings_list, switch, text, texts

MODEL_HELP = "Hub id (org/name) or folder"
_REMEMBERED = "the last one downloaded or chosen, else a small one"

PROMPT = text("--prompt", "-p", group="Prompt", help="Prompt text; - reads standard input", excludes=("--input",))
PROMPT_FILE = file("--prompt-file", "-f", group="Prompt", help="Text file that holds the prompt", excludes=("--input",))
IMAGE = files(
    "--image",
    group="Prompt",
    help="Image that the prompt is about; - reads standard input",
    excludes=("--input",),
)
SYSTEM = setting("--system", key="chat.system", group="Prompt", help="System prompt")
NUM_RETURN = integer(
    "--num-return",
    group="Sampling",
    help="Number of answers, each with the next seed",
    default=1,
    minimum=1,
    maximum=1000,
    not_in=("chat", "run"),
    excludes=("--input",),
)
INPUT = file("--input", "-i", group="Batch", help="File of prompts: JSONL, text, CSV or TSV; - reads standard input")
OUTPUT = file(
    "--output",
    "-o",
    group="Batch",
    help="File for the answers, as JSONL",
    default_text="standard output",
    needs="--input",
)
INPUT_FORMAT = text(
    "--input-format",
    group="Batch",
    metavar="NAME",
    help="Format of the input: jsonl, text, csv or tsv",
    default_text="by the file's suffix",
    needs="--input",
)
COLUMN = text(
    "--column",
    group="Batch",
    metavar="NAME",
    help="Column or JSON field that holds the prompt",
    default_text="prompt",
    needs="--input",
)
PROMPT_TEMPLATE = text(
    "--prompt-template",
    group="Batch",
    help='Prompt made of columns in braces: "Summarise: {text}"',
    needs="--input",
    excludes=("--column",),
)
UNORDERED = switch("--unordered", group="Batch", help="Write answers in the order they finish", needs="--input")
OVERWRITE = switch(
    "--overwrite", group="Batch", help="Replace answers made with a different model or settings", needs="--output"
)
TOKEN_IDS = switch("--token-ids", group="Batch", help="Add the token ids of each answer", needs="--input")
MANIFEST = switch("--manifest", group="Batch", help="Add to each answer what llmctl replay needs", needs="--input")
CONFIG = file("--config", "-c", group="Model", help="YAML file on top of the usual ones")
SET = texts(
    "--set",
    group="Model",
    metavar="KEY=VALUE",
    help="Set any configuration key, for example generation.top_k=40",
)
OFFLINE = switch(
    "--offline",
    group="Model",
    help="Use only files on this machine, never the network",
    not_in=("config show", "config explain"),
)
MODEL = setting(
    "--model", "-m", key="model.id", metavar="MODEL", group="Model", help=MODEL_HELP, default_text=_REMEMBERED
)
REVISION = setting(
    "--revision",
    key="model.revision",
    group="Model",
    help="Branch, tag or commit on the Hub",
    default_text="the main branch",
)
ADAPTER = settings_list(
    "--adapter", key="model.adapters", metavar="MODEL", group="Model", help="LoRA adapter: a Hub id or folder"
)
TRUST_REMOTE_CODE = setting(
    "--trust-remote-code",
    key="model.trust_remote_code",
    metavar=None,
    group="Model",
    help="Run Python code from the model's repository; read it first",
)
OVERCOMMIT = setting(
    "--overcommit", key="load.overcommit", metavar=None, group="Loading", help="Load even if the RAM seems too small"
)
DRAFT = setting(
    "--draft",
    key="draft.id",
    metavar="MODEL",
    group="Speed",
    help="Smaller model that proposes tokens: a Hub id or folder",
)
VLLM_PYTHON = setting(
    "--vllm-python",
    key="vllm.python",
    metavar="FILE",
    group="Engine",
    help="Python of the environment that has vLLM",
    default_text="this one",
)
# The model and the prompt as positional arguments. A command that takes one takes the flag as well.
MODEL_ARGUMENT = setting(
    "MODEL", key="model.id", metavar="MODEL", help=MODEL_HELP, default_text=_REMEMBERED, excludes=("--model",)
)
PROMPT_ARGUMENT = text(
    "PROMPT", metavar="PROMPT", help="Prompt text; - reads standard input", excludes=("--prompt", "--input")
)
# Answers always stream, so this has no effect; it is the habit of users of other tools.
STREAM = switch("--stream", help="Stream the answer, as always", is_hidden=True)

FLAGS: tuple[Flag[Any], ...] = (
    PROMPT,
    PROMPT_FILE,
    IMAGE,
    SYSTEM,
    setting("--raw", key="chat.raw", metavar=None, group="Prompt",
            help="Send the prompt as it is, without the chat template"),
    setting("--template", key="chat.template", metavar="FILE", group="Prompt", help="Jinja chat template",
            default_text="the model's", excludes=("--raw",)),
    setting("--think/--no-think", key="chat.thinking", metavar=None, group="Prompt",
            help="Turn the model's thinking on or off", default_text="the template's", excludes=("--raw",)),
    setting("--prefill", key="chat.prefill", group="Prompt",
            help="Beginning of the answer, which the model continues", excludes=("--raw",)),
    setting("--max-new-tokens", "-n", "--max-tokens", key="generation.max_new_tokens", metavar="INTEGER",
            group="Sampling", help="Maximum tokens to generate", default_text="512; in chat, the rest of the context"),
    setting("--temperature", "-t", key="generation.temperature", metavar="NUMBER", group="Sampling",
            help="Sampling temperature; 0 is greedy", default_text="greedy"),
    setting("--top-p", key="generation.top_p", metavar="NUMBER", group="Sampling",
            help="Sample from the most likely tokens of this total probability", default_text="the model's"),
    setting("--top-k", key="generation.top_k", metavar="INTEGER", group="Sampling",
            help="Sample from this many most likely tokens; 0 means all", default_text="the model's"),
    setting("--min-p", key="generation.min_p", metavar="NUMBER", group="Sampling",
            help="Exclude tokens less likely than this fraction of the most likely", default_text="the model's"),
    setting("--repetition-penalty", key="generation.repetition_penalty", metavar="NUMBER", group="Sampling",
            help="Penalty for tokens that have appeared; 1 is none", default_text="the model's"),
    settings_list("--stop", key="generation.stop_strings", group="Sampling",
                  help="Text that ends the answer and is not part of it"),
    NUM_RETURN,
    setting("--seed", key="seed", metavar="INTEGER", group="Sampling", help="Seed of all random numbers"),
    setting("--logprobs", key="generation.logprobs", metavar="INTEGER", group="Sampling",
            help="Report the log-probability of each token, and of this many top tokens", default_text="off"),
    setting("--json-schema", key="structure.json_schema", metavar="FILE", group="Structure",
            help="JSON schema that the answer must satisfy: a file or JSON text"),
    setting("--regex", key="structure.regex", group="Structure",
            help="Regular expression that the whole answer must match"),
    setting("--choices", key="structure.choices", group="Structure",
            help="Answers to choose from, separated by commas: a,b,c"),
    setting("--grammar", key="structure.grammar", metavar="FILE", group="Structure",
            help="Lark grammar of the answer: a file or its text"),
    INPUT,
    OUTPUT,
    INPUT_FORMAT,
    COLUMN,
    PROMPT_TEMPLATE,
    UNORDERED,
    OVERWRITE,
    TOKEN_IDS,
    MANIFEST,
    MODEL,
    REVISION,
    ADAPTER,
    setting("--merge", key="model.merge_adapters", metavar=None, group="Model",
            help="Merge the adapters into the model's weights"),
    TRUST_REMOTE_CODE,
    CONFIG,
    SET,
    OFFLINE,
    setting("--quant", key="quantization.bits", metavar="NAME", group="Loading",
            help="Quantise the weights: 8bit, 4bit or none", default_text="none"),
    setting("--quant-cache/--no-quant-cache", key="quantization.cache", metavar=None, group="Loading",
            help="Keep and reuse quantised weights on disk"),
    setting("--dtype", key="load.dtype", metavar="NAME", group="Loading", help="Data type: auto, fp32, fp16 or bf16"),
    setting("--attn", key="load.attn_implementation", metavar="NAME", group="Loading",
            help="Attention: auto, flash_attention_2, sdpa, eager or flex_attention"),
    setting("--device-map", "--device", key="load.device_map", metavar="NAME", group="Loading",
            help="Device: auto, cpu, cuda, cuda:N, xpu, mps, balanced or sequential"),
    OVERCOMMIT,
    setting("--max-image-tokens", key="load.max_image_tokens", metavar="INTEGER", group="Loading",
            help="Shrink larger images to this many tokens", default_text="the model's limits"),
    setting("--deterministic", key="deterministic", metavar=None, group="Loading",
            help="Use torch's deterministic algorithms; slower"),
    DRAFT,
    setting("--prompt-lookup", key="generation.prompt_lookup_num_tokens", metavar="INTEGER", group="Speed",
            help="Propose up to this many tokens copied from the text so far", default_text="off"),
    setting("--cache", key="generation.cache_implementation", metavar="NAME", group="Speed",
            help="KV cache: dynamic, static, quantized, offloaded or offloaded_static", default_text="dynamic"),
    setting("--compile", key="generation.compile", metavar=None, group="Speed",
            help="Compile the decoding step; slow to start"),
    setting("--engine", key="engine", metavar="NAME", group="Engine", help="Inference engine: transformers or vllm"),
    VLLM_PYTHON,
    setting("--host", key="serve.host", group="Server", help="Address; one that others reach needs an API key"),
    setting("--port", key="serve.port", metavar="INTEGER", group="Server", help="Port; 0 takes a free one"),
    setting("--api-key-file", key="serve.api_key_file", metavar="FILE", group="Server",
            help="File of API keys, one per line", default_text="LLMCTL_API_KEY"),
    setting("--no-api-key", key="serve.no_api_key", metavar=None, group="Server",
            help="Let everybody who reaches the address use the model"),
    setting("--model-name", key="serve.model_name", group="Server", help="Name of the model for clients",
            default_text="its id"),
    switch("--json", group="Output", help="Print one JSON document"),
    switch("--quiet", "-q", group="Output", help="Print only the result"),
    switch("--verbose", "-v", group="Output", help="Report every decision and step"),
    switch("--debug", group="Output", help="Show the traceback of an error and the libraries' own messages"),
    switch("--no-color", group="Output", help="Print without colours, as NO_COLOR does"),
)  # fmt: skip


def select(*names: "str | Flag[Any]", command: str) -> tuple[Flag[Any], ...]:
    """Return the flags that a command takes: groups by title, rows by long name, and flags of its own.

    A flag of its own replaces the row of the same parameter. Switches for one value of a flag, which other tools have,
    are added.

    Raises:
        KeyError: the table has no such group or flag.
    """
    command_flags = {name.parameter for name in names if isinstance(name, Flag)}
    selected: dict[Flag[Any], None] = {}
    for name in names:
        if isinstance(name, Flag):
            selected[name] = None
            continue
        rows = [flag for flag in FLAGS if name == flag.long or (name == flag.group and command not in flag.not_in)]
        if not rows:
            raise KeyError(name)
        selected |= dict.fromkeys(flag for flag in rows if flag.parameter not in command_flags)
    spelled = {name for flag in selected for name in flag.spellings}
    return (*selected, *(switch for flag in selected for switch in flag.value_switches(spelled)))


def flag_of(key: str) -> Flag[Any] | None:
    """Return the flag that sets a configuration key, if there is one."""
    return next((flag for flag in FLAGS if flag.key == key), None)


def generation_keys() -> dict[str, str]:
    """Return what chat's `/set` takes: names of flags and of keys, each with the key of the section `generation`."""
    from llmctl.config.schema import GenerationSection

    names = {name: name for name in (*GenerationSection.model_fields, "seed")}
    for flag in FLAGS:
        section, _, leaf = (flag.key or "").rpartition(".")
        if section == "generation" or flag.key == "seed":
            names[flag.long.removeprefix("--")] = leaf
    return names
