"""`llmctl run`."""

import sys

from llmctl.cli._command import command, new_app
from llmctl.cli._flags import MODEL_ARGUMENT, OFFLINE, PROMPT, PROMPT_ARGUMENT, PROMPT_FILE, STREAM, SYSTEM
from llmctl.cli._options import Options
from llmctl.cli._text_input import read_prompt

app = new_app()


@command(
    app, MODEL_ARGUMENT, PROMPT_ARGUMENT, STREAM, PROMPT, PROMPT_FILE, SYSTEM, "--template", "--think", "Sampling",
    "Structure", "Model", "Loading", "Speed",
)  # fmt: skip
def run(options: Options) -> None:
    """Answer a prompt with a model, or chat with it.

    With a prompt, as an argument or on standard input, this is llmctl generate. Without one it is llmctl chat.

    Examples:

      llmctl run Qwen/Qwen3-4B

      llmctl run Qwen/Qwen3-4B "What is the capital of France?"

      cat report.txt | llmctl run Qwen/Qwen3-4B "Summarise this:"
    """
    prompt, prompt_file = options.either(PROMPT_ARGUMENT, PROMPT), options[PROMPT_FILE]
    if prompt is None and prompt_file is None and sys.stdin.isatty():
        from llmctl.cli._chat_screen import DisplayOptions
        from llmctl.cli.chat import converse

        converse(options, resume=None, display=DisplayOptions())
        return
    from llmctl.cli.generate import answer

    settings, text = options.settings(), read_prompt(prompt, prompt_file)
    answer(options.output, settings, text, count=1, offline=options[OFFLINE])
