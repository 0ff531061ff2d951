"""`llmctl prompt`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import (
    ConfigOption,
    ModelOption,
    OfflineOption,
    RevisionOption,
    SetOption,
    prepare_model,
    settings_asked,
)
from llmctl.cli._render import Output

app = new_app()


@app.command(cls=Command)
def prompt(
    ctx: typer.Context,
    text: Annotated[
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
    tokens: Annotated[bool, typer.Option("--tokens", help="Each id beside its text.")] = False,
    model: ModelOption = None,
    revision: RevisionOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show a prompt as the model sees it, and what is wrong with it.

    The text goes to standard output. Notes say how many tokens it has against the context, how often the
    beginning-of-sequence token stands in it, and which tokens end an answer. No weights are read.

    Examples:

      llmctl prompt --prompt "What is the capital of France?"

      llmctl prompt --system "Be brief." --prompt "Hello" --tokens

      llmctl prompt --prompt-file question.txt --template mine.jinja --json
    """
    from llmctl.cli.generate import read_prompt
    from llmctl.generation.inspection import inspect_prompt
    from llmctl.loading.loader import apply_environment
    from llmctl.loading.model import load_prompt_model
    from llmctl.loading.transformers_compat import quiet_libraries

    output: Output = ctx.obj
    settings = settings_asked(ctx)
    words = read_prompt(text, prompt_file)
    prepared = prepare_model(output, settings, offline=offline)
    apply_environment(prepared.plan)
    asked = settings.config
    with quiet_libraries():
        prompt_model = load_prompt_model(prepared)
        context = prompt_model.context_length
        seen = inspect_prompt(
            prompt_model.tokenizer,
            words,
            asked.chat,
            eos_token_ids=prompt_model.eos_token_ids,
            context_length=context,
            max_new_tokens=asked.generation.max_new_tokens,
        )
    if output.as_json:
        output.document("llmctl.prompt/1", {**asdict(seen), "context_length": context})
        return
    if tokens:
        output.table(("id", "token"), [(str(n), repr(t)) for n, t in zip(seen.token_ids, seen.tokens, strict=True)])
    else:
        output.line(seen.text)
    how = "through the chat template" if seen.templated else "as it is"
    ends = ", ".join(seen.stop_tokens) or "nothing but the length"
    output.note(
        f"{len(seen.token_ids)} tokens of {context or 'unknown'}, {how}; beginning-of-sequence tokens: "
        f"{seen.bos_count}; an answer ends with {ends}"
    )
    for warning in seen.warnings:
        output.warn(warning)
