"""The options by which commands are told what to load, and how they become settings.

A flag is a short name for a key of the configuration; `FLAGS` is the whole table. Values are handed on as they were
typed: the schema checks them, together with everything else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._download_bar import DownloadBar
from llmctl.cli._render import Output
from llmctl.config import Settings, read_settings
from llmctl.config.layers import Entry

if TYPE_CHECKING:
    from llmctl.loading.prepare import Prepared

FLAGS = {
    "model": "model.id",
    "revision": "model.revision",
    "adapter": "model.adapters",
    "merge": "model.merge_adapters",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "load.dtype",
    "attn": "load.attn_implementation",
    "device_map": "load.device_map",
    "overcommit": "load.overcommit",
    "quant": "quantization.bits",
    "quant_cache": "quantization.cache",
    "seed": "seed",
    "deterministic": "deterministic",
    "max_new_tokens": "generation.max_new_tokens",
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "stop": "generation.stop_strings",
    "logprobs": "generation.logprobs",
    "prompt_lookup": "generation.prompt_lookup_num_tokens",
    "cache": "generation.cache_implementation",
    "compile": "generation.compile",
    "draft": "draft.id",
    "json_schema": "structure.json_schema",
    "regex": "structure.regex",
    "choices": "structure.choices",
    "grammar": "structure.grammar",
    "system": "chat.system",
    "template": "chat.template",
    "raw": "chat.raw",
    "host": "serve.host",
    "port": "serve.port",
    "api_key_file": "serve.api_key_file",
    "no_api_key": "serve.no_api_key",
    "model_name": "serve.model_name",
    "engine": "engine",
    "vllm_python": "vllm.python",
}

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="A Hub id (org/name) or a folder.", show_default=False)
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="A branch, a tag or a commit on the Hub.", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="A YAML file over the usual ones.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key: --set generation.top_k=40 (repeatable).", show_default=False),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, fp32, fp16 or bf16.", show_default=False)]
AttentionOption = Annotated[
    str | None,
    typer.Option("--attn", help="auto, flash_attention_2, sdpa, eager or flex_attention.", show_default=False),
]
QuantOption = Annotated[str | None, typer.Option("--quant", help="8bit, 4bit or none.", show_default=False)]
QuantCacheOption = Annotated[
    bool | None,
    typer.Option("--quant-cache/--no-quant-cache", help="Keep and read quantised copies.", show_default=False),
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option("--device-map", help="auto, cpu, cuda, cuda:N, mps, balanced or sequential.", show_default=False),
]
TrustOption = Annotated[
    bool | None,
    typer.Option("--trust-remote-code", help="Run the model's own Python code. Read it first.", show_default=False),
]
OvercommitOption = Annotated[
    bool | None,
    typer.Option("--overcommit", help="Load even when the RAM does not seem to suffice.", show_default=False),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="A LoRA adapter: a Hub id or a folder (repeatable).", show_default=False),
]
MergeOption = Annotated[
    bool | None, typer.Option("--merge", help="Add the adapters to the model's own weights.", show_default=False)
]
DraftOption = Annotated[
    str | None,
    typer.Option("--draft", help="A smaller model that proposes tokens (Hub id or folder).", show_default=False),
]
LookupOption = Annotated[
    str | None,
    typer.Option("--prompt-lookup", help="Propose up to this many tokens from the text so far.", show_default=False),
]
CacheOption = Annotated[
    str | None,
    typer.Option("--cache", help="dynamic, static, quantized, offloaded or offloaded_static.", show_default=False),
]
CompileOption = Annotated[
    bool | None, typer.Option("--compile", help="Compile the decoding step: slow to start.", show_default=False)
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
LogprobsOption = Annotated[
    str | None,
    typer.Option(
        "--logprobs",
        help="Log-probability of each token by the raw logits, with this many of the likeliest (0: none).",
        show_default=False,
    ),
]
DeterministicOption = Annotated[
    bool | None,
    typer.Option("--deterministic", help="Ask torch for algorithms that repeat themselves.", show_default=False),
]
JsonSchemaOption = Annotated[
    str | None,
    typer.Option("--json-schema", help="Answer with JSON of this schema: a file, or JSON text.", show_default=False),
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", help="Answer with a text that this matches.", show_default=False)
]
ChoicesOption = Annotated[
    str | None, typer.Option("--choices", help="Answer with one of these: a,b,c.", show_default=False)
]
GrammarOption = Annotated[
    str | None, typer.Option("--grammar", help="Answer by a Lark grammar: a file, or its text.", show_default=False)
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="transformers or vllm.", show_default=False)]
VllmPythonOption = Annotated[
    str | None,
    typer.Option("--vllm-python", help="The Python of the environment that has vLLM.", show_default=False),
]
SeedOption = Annotated[str | None, typer.Option("--seed", help="The seed of everything random.", show_default=False)]


def settings_from_flags(config: Path | None, assignments: list[str] | None, **flags: Any) -> Settings:
    """All the layers, the flags on top.

    Args:
        config: The file of `--config`.
        assignments: The `--set` texts.
        flags: Values by the names in `FLAGS`; None means that the flag was not given.

    Raises:
        ConfigError: every problem of every layer.
    """
    given = {
        FLAGS[name]: Entry(value, f"--{name.replace('_', '-')}") for name, value in flags.items() if value is not None
    }
    return read_settings(config=config, flags=given, assignments=assignments or ())


def settings_asked(ctx: typer.Context, **instead: Any) -> Settings:
    """All the layers of a command: its --config and --set, and every option of it whose name is in `FLAGS`.

    Args:
        ctx: The command's context; the options are read off it, so that none can be forgotten on the way.
        instead: Values instead of those typed; None means that the flag was not given.

    Raises:
        ConfigError: every problem of every layer.
    """
    given = {name: value for name, value in ctx.params.items() if name in FLAGS and value not in ([], ())}
    config = ctx.params.get("config")
    return settings_from_flags(Path(config) if config else None, ctx.params.get("assignments"), **{**given, **instead})


def prepare_model(output: Output, settings: Settings, *, offline: bool) -> "Prepared":
    """Everything up to the weights, with a download shown and interruptible on the way; says which model it took.

    Raises:
        LlmctlError: as `loader.prepare`.
    """
    from llmctl.generation.structured.structure import check_structure
    from llmctl.loading.prepare import prepare

    check_structure(settings.config)
    with download_shown(output, settings) as bar:
        prepared = prepare(settings, offline=offline, progress=bar)
    output.note(f"model: {prepared.located.source} ({prepared.located.reason})")
    if prepared.draft is not None:
        output.note(f"draft: {prepared.draft.located.source} ({prepared.draft.located.reason})")
    return prepared


@contextmanager
def download_shown(output: Output, settings: Settings) -> Iterator[DownloadBar]:
    """A bar for a download that may begin inside, which can be interrupted and gone on with."""
    from llmctl.cli._interrupts import resumable
    from llmctl.model.resolve import is_path

    bar = DownloadBar(output)
    if settings.config.model.id is not None and not is_path(settings.config.model.id):
        from llmctl.hub.http import bound_other_calls

        bound_other_calls()
    with resumable(output, arriving=lambda: bar.has_started):
        yield bar
