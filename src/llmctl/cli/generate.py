"""`llmctl generate`."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._completion import (
    finish_text,
    logprobs_document,
    note_logprobs,
    speed_text,
    statistics_document,
    statistics_lines,
)
from llmctl.cli._flags import (
    COLUMN,
    INPUT,
    INPUT_FORMAT,
    MANIFEST,
    NUM_RETURN,
    OFFLINE,
    OUTPUT,
    OVERWRITE,
    PROMPT_ARGUMENT,
    PROMPT_TEMPLATE,
    STREAM,
    TOKEN_IDS,
    UNORDERED,
    VLLM_PYTHON,
)
from llmctl.cli._image_input import PromptInput, check_takes_images, read_prompt_input
from llmctl.cli._loading import load_model, prepare_model, show_hashing
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO, UserError

if TYPE_CHECKING:
    from llmctl.config import Settings
    from llmctl.generation.completion import Chunk, Completion
    from llmctl.loading.model import LoadedModel

app = new_app()


@command(
    app, PROMPT_ARGUMENT, STREAM, "Prompt", "Sampling", "Structure", "Batch", "Model", "Loading", "Speed", "Engine"
)
def generate(options: Options) -> None:
    """Generate text from a prompt.

    The prompt comes from PROMPT or --prompt, --prompt-file or standard input. Several of them are joined, standard
    input last. The model's chat template is applied if it has one, and the answer streams to standard output.

    With --input, every prompt of a file is answered. An interrupted run continues when the same command runs again.
    --engine vllm answers files with vLLM.

    Examples:

      llmctl generate "What is the capital of France?"

      llmctl generate --quant 4bit "Write a haiku" -t 0.8 --seed 7

      cat report.txt | llmctl generate "Summarise this:" --json

      llmctl generate "Is the sky blue?" --choices yes,no

      llmctl generate --image cat.png "What is in this picture?" --model Qwen/Qwen3-VL-2B-Instruct

      llmctl generate --input prompts.jsonl --output answers.jsonl

      llmctl generate --input reviews.csv --prompt-template "Translate to {language}: {text}"
    """
    settings = options.settings()
    if settings.config.engine != "vllm":
        options.refuse(VLLM_PYTHON, reason="--vllm-python works only with --engine vllm")
    if options[INPUT] is not None:
        _answer_file(options, settings)
        return
    if settings.config.engine == "vllm":
        raise UserError(
            "--engine vllm answers files of prompts: --input FILE", hint="for one prompt: --engine transformers"
        )
    answer(options.output, settings, read_prompt_input(options), count=options[NUM_RETURN], offline=options[OFFLINE])


def _answer_file(options: Options, settings: "Settings") -> None:
    from llmctl.cli._batch import BatchFiles, answer_batch

    files = BatchFiles(
        input=options[INPUT] or Path("-"),
        output=options[OUTPUT],
        input_format=options[INPUT_FORMAT],
        column=options[COLUMN],
        template=options[PROMPT_TEMPLATE],
        unordered=options[UNORDERED],
        overwrite=options[OVERWRITE],
        with_ids=options[TOKEN_IDS],
        with_manifest=options[MANIFEST],
    )
    if files.to_stdout:
        options.refuse(OVERWRITE, reason="--overwrite works only with --output FILE")
    if not answer_batch(options.output, settings, files, offline=options[OFFLINE]):
        raise typer.Exit(EXIT_NO)


def answer(output: Output, settings: "Settings", given: PromptInput, *, count: int, offline: bool) -> None:
    """Answer one prompt `count` times."""
    from llmctl.generation.stream import generate_many

    prepared = prepare_model(output, settings, offline=offline, images=given.images_to_plan)
    if given.pictures:
        check_takes_images(prepared)
    loaded = load_model(output, prepared)
    is_prose = not settings.config.structure.model_fields_set  # a line break within a JSON string would be wrong
    completions = []
    for number, chunks in enumerate(generate_many(loaded, given.prompt, count=count)):
        if number and not output.as_json:
            output.line("")
        with nullcontext() if output.as_json else _Printer(output, wraps=is_prose) as printer:
            for chunk in chunks:
                if printer is not None:
                    printer.add(chunk)
                if chunk.completion is not None:
                    completions.append(chunk.completion)
        if not output.as_json:
            _note_completion(output, loaded, completions[-1])
    if output.as_json:
        with show_hashing(output, loaded.resolved):
            body = document(loaded, given, completions)
        output.document("llmctl.generate/1", body)


class _Printer:
    """Shows one answer: its text on standard output, its reasoning on a terminal. Its state: if reasoning came last."""

    def __init__(self, output: Output, *, wraps: bool) -> None:
        self._text, self._reasoning = output.prose(wraps=wraps), output.reasoning_prose()
        self._is_thinking = False

    def add(self, chunk: "Chunk") -> None:
        if chunk.reasoning and self._reasoning is not None:
            self._is_thinking = True
            self._reasoning.write(chunk.reasoning, "dim")
        if not chunk.text:
            return
        if self._is_thinking and self._reasoning is not None:
            self._reasoning.write("\n\n")
        self._is_thinking = False
        self._text.write(chunk.text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the line, with the word that is held back, also when the answer is interrupted."""
        if self._reasoning is not None:
            self._reasoning.finish()
        self._text.write("\n")


def _note_completion(output: Output, loaded: "LoadedModel", completion: "Completion") -> None:
    seed = f", seed {completion.seed}" if loaded.plan.generation_kwargs.get("do_sample") else ""
    counts = f"{completion.prompt_token_count} tokens in, {len(completion.token_ids)} out"
    output.note(f"{counts}, {speed_text(completion)}{seed}; {finish_text(completion)}")
    for line in statistics_lines(completion):
        output.note(line)
    if completion.reasoning and not completion.text.strip():
        output.warn("the answer ended within its reasoning; allow more with --max-new-tokens N, or try --no-think")
    note_logprobs(output, loaded, completion)


def document(loaded: "LoadedModel", given: PromptInput, completions: list["Completion"]) -> dict[str, Any]:
    """Return the document of `--json`: the answers, the timings, and what is needed to repeat them."""
    from llmctl.platform_support import peak_memory_bytes
    from llmctl.reproduce.manifest import make_manifest

    return {
        "prompt": given.text,
        **given.images_document(),
        **completions[0].prompt.document(),
        "generation": loaded.plan.generation.document(),
        "completions": [_completion_document(loaded, completion) for completion in completions],
        "peak_memory_bytes": peak_memory_bytes(),
        "manifest": make_manifest(loaded, seed=completions[0].seed).document(),
        "load": asdict(loaded.measured),
    }


def _completion_document(loaded: "LoadedModel", completion: "Completion") -> dict[str, Any]:
    from llmctl.generation.completion import reasoning_document
    from llmctl.generation.structured.structure import parsed_value

    rate = completion.tokens_per_second
    return {
        "text": completion.text,
        **reasoning_document(completion),
        **parsed_value(completion),
        "finish_reason": completion.finish_reason,
        "length_limit": completion.length_limit,
        "stop_string": completion.stop_string,
        "seed": completion.seed,
        "prompt_tokens": completion.prompt_token_count,
        "completion_tokens": len(completion.token_ids),
        "token_ids": list(completion.token_ids),
        "first_token_seconds": round(completion.first_token_seconds, 4),
        "seconds": round(completion.seconds, 4),
        "tokens_per_second": round(rate, 2) if rate else None,
        **logprobs_document(loaded, completion),
        **statistics_document(completion),
    }
