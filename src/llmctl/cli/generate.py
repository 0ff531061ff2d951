"""`llmctl generate`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._decoding_stats import decoding_document, decoding_lines
from llmctl.cli._options import (
    AdapterOption,
    AttentionOption,
    CacheOption,
    ChoicesOption,
    CompileOption,
    ConfigOption,
    DeterministicOption,
    DeviceMapOption,
    DraftOption,
    DtypeOption,
    EngineOption,
    GrammarOption,
    JsonSchemaOption,
    LogprobsOption,
    LookupOption,
    MergeOption,
    ModelOption,
    OfflineOption,
    OvercommitOption,
    QuantCacheOption,
    QuantOption,
    RegexOption,
    RevisionOption,
    SeedOption,
    SetOption,
    TrustOption,
    VllmPythonOption,
    prepare_model,
    settings_asked,
)
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, UserError
from llmctl.platform_support import stdin_has_input
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.generation.completion import Completion
    from llmctl.loading.model import LoadedModel
    from llmctl.model.resolve import Located

app = new_app()
_LONG_SECONDS = 2


@app.command(cls=Command)
def generate(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt. - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="A text file with the prompt.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.", show_default=False)] = None,
    raw: Annotated[bool | None, typer.Option("--raw", help="Without the chat template.", show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="A Jinja chat template's file.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        str | None, typer.Option("--max-new-tokens", "-n", help="Most tokens to generate.", show_default=False)
    ] = None,
    temperature: Annotated[
        str | None, typer.Option("--temperature", "-t", help="0 is greedy; above 0 samples.", show_default=False)
    ] = None,
    top_p: Annotated[str | None, typer.Option("--top-p", help="Nucleus sampling.", show_default=False)] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text (repeatable).", show_default=False)
    ] = None,
    num_return: Annotated[
        int, typer.Option("--num-return", help="How many answers; the seeds count up.", min=1, max=1000)
    ] = 1,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    choices: ChoicesOption = None,
    grammar: GrammarOption = None,
    seed: SeedOption = None,
    logprobs: LogprobsOption = None,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="With --input: the ids of the answers as well.")
    ] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="With --input: each answer carries what llmctl replay needs.")
    ] = False,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", help="A file of prompts: JSONL, text, CSV. - is standard input.", show_default=False
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the answers to --input go, as JSONL.", show_default=False),
    ] = None,
    input_format: Annotated[
        str | None, typer.Option("--input-format", help="jsonl, text, csv or tsv.", show_default=False)
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="The column (or field) of the prompt.", show_default=False)
    ] = None,
    unordered: Annotated[bool, typer.Option("--unordered", help="Write answers as they are finished.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let answers made with another model or settings go.")
    ] = False,
    model: ModelOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    quant: QuantOption = None,
    quant_cache: QuantCacheOption = None,
    dtype: DtypeOption = None,
    attn: AttentionOption = None,
    device_map: DeviceMapOption = None,
    deterministic: DeterministicOption = None,
    adapter: AdapterOption = None,
    merge: MergeOption = None,
    draft: DraftOption = None,
    prompt_lookup: LookupOption = None,
    cache: CacheOption = None,
    compile: CompileOption = None,
    assignments: SetOption = None,
    trust_remote_code: TrustOption = None,
    overcommit: OvercommitOption = None,
    engine: EngineOption = None,
    vllm_python: VllmPythonOption = None,
    offline: OfflineOption = False,
) -> None:
    """Generate text from a prompt.

    The prompt comes from --prompt, --prompt-file or standard input; where several are given they are joined, standard
    input last. The model's chat template is used when it has one. Words appear as they come. --input answers a file
    of prompts; a run that was stopped goes on when the same command runs again. With --engine vllm, vLLM computes them.

    Examples:

      llmctl generate --prompt "What is the capital of France?"

      llmctl generate --quant 4bit --prompt "Write a haiku" --temperature 0.8 --seed 7

      cat report.txt | llmctl generate --prompt "Summarise this:" --json

      llmctl generate --prompt "Is the sky blue?" --choices yes,no

      llmctl generate --input prompts.jsonl --output answers.jsonl
    """
    output: Output = ctx.obj
    settings = settings_asked(ctx)
    if input_file is not None:
        from llmctl.cli._batch import Files, batch

        if prompt is not None or prompt_file is not None or num_return != 1:
            raise UserError("--input has the prompts: leave --prompt, --prompt-file and --num-return away")
        files = Files(input_file, output_file, input_format, column, unordered, overwrite)
        if not batch(output, settings, files, offline=offline, with_ids=token_ids, with_manifest=manifest):
            raise typer.Exit(EXIT_NO)
        return
    if settings.config.engine == "vllm":
        raise UserError(
            "--engine vllm answers files of prompts: --input FILE", hint="for one prompt: --engine transformers"
        )
    if output_file is not None:
        raise UserError("--output is for the answers to --input FILE", hint="or send standard output there: > FILE")
    answer(output, settings, read_prompt(prompt, prompt_file), count=num_return, offline=offline)


def answer(output: Output, settings: "Settings", text: str, *, count: int, offline: bool) -> None:
    """Answer one prompt, `count` times."""
    from llmctl.generation.stream import generate_many
    from llmctl.loading.loader import load_prepared

    prepared = prepare_model(output, settings, offline=offline)
    with output.waiting(f"loading {prepared.located.source}"):
        loaded = load_prepared(prepared)
    for decision in loaded.plan.decisions:
        output.detail(str(decision))
    completions = []
    for number, chunks in enumerate(generate_many(loaded, text, count=count)):
        if number and not output.as_json:
            output.line("")
        for chunk in chunks:
            if chunk.text and not output.as_json:
                output.piece(chunk.text)
            if chunk.completion is not None:
                completions.append(chunk.completion)
        if not output.as_json:
            output.piece("\n")
            _note(output, loaded, completions[-1])
            tell_logprobs(output, loaded, completions[-1])
    if output.as_json:
        with hashing(output, loaded.located):
            body = document(loaded, text, completions)
        output.document("llmctl.generate/1", body)


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt from where it was given: the flag, the file, standard input, joined by blank lines.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    parts = []
    if prompt is not None and prompt != "-":
        parts.append(prompt)
    if prompt_file is not None:
        try:
            parts.append(prompt_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--prompt-file {prompt_file}: {reason}") from error
    if prompt == "-" or not sys.stdin.isatty():
        try:
            given = sys.stdin.read() if prompt == "-" or not parts or stdin_has_input() else ""
        except UnicodeDecodeError as error:
            raise UserError("standard input is not UTF-8 text") from error
        parts.append(given)
    text = "\n\n".join(part.rstrip("\n") for part in parts if part.strip())
    if not text:
        raise UserError("there is no prompt", hint="give --prompt TEXT, --prompt-file FILE, or text on standard input")
    return text


def _note(output: Output, loaded: "LoadedModel", done: "Completion") -> None:
    rate = f", {done.tokens_per_second:.1f} tokens/s" if done.tokens_per_second else ""
    why = {"length": "max_new_tokens reached", "stop_string": f"stop string {done.stop_string!r}"}.get(
        done.finish_reason, "end of answer"
    )
    seed = f", seed {done.seed}" if loaded.plan.generation_kwargs.get("do_sample") else ""
    output.note(
        f"{done.prompt_token_count} tokens in, {len(done.token_ids)} out, first after "
        f"{done.first_token_seconds:.2f} s{rate}{seed}; {why}"
    )
    for line in decoding_lines(done):
        output.note(line)


def tell_logprobs(output: Output, loaded: "LoadedModel", done: "Completion") -> None:
    """The tokens of an answer with their log-probabilities, one a line, where they were asked for."""
    from llmctl.generation.logprobs import shown

    for scored in done.logprobs or ():
        output.note(shown(scored, loaded.tokenizer))


@contextmanager
def hashing(output: Output, located: "Located") -> Iterator[None]:
    """Show that a model's files are hashed, where they have to be; say how long it took where that was long."""
    from llmctl.reproduce.hashes import unknown_bytes

    size, began = unknown_bytes(located), time.perf_counter()
    if not size:
        yield
        return
    with output.waiting(f"hashing {format_bytes(size)} of the model's files, once"):
        yield
    seconds = time.perf_counter() - began
    if seconds > _LONG_SECONDS:
        output.note(
            f"hashed {format_bytes(size)} of the model's files in {seconds:.0f} s; remembered until they change"
        )


def document(loaded: "LoadedModel", prompt: str, completions: list["Completion"]) -> dict[str, Any]:
    """What `--json` says: the answers, the timings, and what is needed to repeat them."""
    from llmctl.generation.logprobs import described
    from llmctl.generation.structured.structure import parsed_value
    from llmctl.platform_support import peak_memory_bytes
    from llmctl.reproduce.manifest import make_manifest

    answers = []
    for done in completions:
        answer: dict[str, Any] = {
            "text": done.text,
            **parsed_value(done),
            "finish_reason": done.finish_reason,
            "stop_string": done.stop_string,
            "seed": done.seed,
            "prompt_tokens": done.prompt_token_count,
            "completion_tokens": len(done.token_ids),
            "token_ids": list(done.token_ids),
            "first_token_seconds": round(done.first_token_seconds, 4),
            "seconds": round(done.seconds, 4),
            "tokens_per_second": round(done.tokens_per_second, 2) if done.tokens_per_second else None,
        }
        if done.logprobs is not None:
            answer["logprobs"] = [described(scored, loaded.tokenizer) for scored in done.logprobs]
        answers.append(answer | decoding_document(done))
    return {
        "prompt": prompt,
        "prompt_ids": list(completions[0].prompt_ids),
        "completions": answers,
        "peak_memory_bytes": peak_memory_bytes(),
        "manifest": make_manifest(loaded).document(),
        "load": asdict(loaded.measured),
    }
