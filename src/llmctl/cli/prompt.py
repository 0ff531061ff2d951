"""`llmctl prompt`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch
from llmctl.cli._flags import OFFLINE, PROMPT_ARGUMENT
from llmctl.cli._image_input import PromptInput, read_prompt_input
from llmctl.cli._loading import prepare_model, show_decisions
from llmctl.cli._options import Options

if TYPE_CHECKING:
    from llmctl.generation.inspection import Inspection
    from llmctl.loading.model import PromptModel
    from llmctl.loading.prepare import Prepared

app = new_app()

TOKENS = switch("--tokens", group="Prompt", help="Show each token id beside its text")


@command(
    app, PROMPT_ARGUMENT, "Prompt", TOKENS, "--model", "--revision", "--config", "--set", "--offline",
    "--max-image-tokens",
)  # fmt: skip
def prompt(options: Options) -> None:
    """Show a prompt as the model sees it, and its problems.

    The text goes to standard output. Notes on standard error give its length and the context, the number of
    beginning-of-sequence tokens, the tokens of images, and the tokens that end an answer. No weights are read.

    Examples:

      llmctl prompt "What is the capital of France?"

      llmctl prompt --system "Be brief." "Hello" --tokens

      llmctl prompt --image cat.png "What is this?" --model Qwen/Qwen3-VL-2B-Instruct

      llmctl prompt --prompt-file question.txt --template mine.jinja --json
    """
    output, settings = options.output, options.settings()
    given = read_prompt_input(options)
    prepared = prepare_model(output, settings, offline=options[OFFLINE])
    model, inspected = _inspect(prepared, given)
    show_decisions(output, model.plan)
    context = model.context_length
    if output.as_json:
        output.document("llmctl.prompt/1", {**asdict(inspected), "context_length": context})
        return
    if options[TOKENS]:
        rows = [(str(number), repr(token)) for number, token in zip(inspected.token_ids, inspected.tokens, strict=True)]
        output.table(("id", "token"), rows)
    else:
        output.line(inspected.text)
    template = "through the chat template" if inspected.templated else "without a template"
    ends = ", ".join(inspected.stop_tokens) or "the token limit only"
    output.note(
        f"{len(inspected.token_ids)} tokens of {context or 'unknown'}, {template}; beginning-of-sequence tokens: "
        f"{inspected.bos_count}; an answer ends with {ends}"
    )
    for file, image in zip(given.files, inspected.images, strict=True):
        output.note(
            f"{file}: {image.width} x {image.height} pixels, {image.tokens} tokens between {image.first} and "
            f"{image.last}; processed with {inspected.processed_with}"
        )
    for warning in inspected.warnings:
        output.warn(warning)


def _inspect(prepared: "Prepared", given: PromptInput) -> "tuple[PromptModel, Inspection]":
    """Return the model without its weights, and the prompt as the model sees it."""
    from llmctl.generation.image_processor import LazyImageProcessor
    from llmctl.generation.inspection import inspect_prompt
    from llmctl.loading.loader import apply_environment
    from llmctl.loading.model import load_prompt_model
    from llmctl.transformers_compat import quiet_libraries

    config = prepared.config
    apply_environment(prepared.plan)
    with quiet_libraries():
        model = load_prompt_model(prepared)
        inspected = inspect_prompt(
            model.tokenizer,
            given.prompt,
            config.chat,
            eos_token_ids=model.eos_token_ids,
            context_length=model.context_length,
            max_new_tokens=config.generation.max_new_tokens,
            embedding_rows=model.info.embedding_rows,
            processor=LazyImageProcessor(model),
        )
    return model, inspected
