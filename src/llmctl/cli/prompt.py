"""`llmctl prompt`."""

from dataclasses import asdict

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import switch
from llmctl.cli._flags import OFFLINE, PROMPT, PROMPT_FILE
from llmctl.cli._loading import prepare_model
from llmctl.cli._options import Options
from llmctl.cli._text_input import read_prompt

app = new_app()

TOKENS = switch("--tokens", group="Prompt", help="Show each token id beside its text")


@command(app, "Prompt", TOKENS, "--model", "--revision", "--config", "--set", "--offline")
def prompt(options: Options) -> None:
    """Show a prompt as the model sees it, and its problems.

    The text goes to standard output. Notes on standard error give its length and the context, the number of
    beginning-of-sequence tokens, and the tokens that end an answer. No weights are read.

    Examples:

      llmctl prompt --prompt "What is the capital of France?"

      llmctl prompt --system "Be brief." --prompt "Hello" --tokens

      llmctl prompt --prompt-file question.txt --template mine.jinja --json
    """
    from llmctl.generation.inspection import inspect_prompt
    from llmctl.loading.loader import apply_environment
    from llmctl.loading.model import load_prompt_model
    from llmctl.loading.transformers_compat import quiet_libraries

    output, settings = options.output, options.settings()
    text = read_prompt(options[PROMPT], options[PROMPT_FILE])
    prepared = prepare_model(output, settings, offline=options[OFFLINE])
    apply_environment(prepared.plan)
    config = settings.config
    with quiet_libraries():
        prompt_model = load_prompt_model(prepared)
        context = prompt_model.context_length
        seen = inspect_prompt(
            prompt_model.tokenizer,
            text,
            config.chat,
            eos_token_ids=prompt_model.eos_token_ids,
            context_length=context,
            max_new_tokens=config.generation.max_new_tokens,
        )
    if output.as_json:
        output.document("llmctl.prompt/1", {**asdict(seen), "context_length": context})
        return
    if options[TOKENS]:
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
