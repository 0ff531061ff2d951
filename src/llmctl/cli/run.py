"""`llmctl run`."""

import sys

from llmctl.cli._command import command, new_app
from llmctl.cli._flags import IMAGE, MODEL_ARGUMENT, OFFLINE, PROMPT, PROMPT_ARGUMENT, PROMPT_FILE, STREAM, SYSTEM
from llmctl.cli._options import Options

app = new_app()


@command(
    app, MODEL_ARGUMENT, PROMPT_ARGUMENT, STREAM, PROMPT, PROMPT_FILE, IMAGE, SYSTEM, "--template", "--think",
    "Sampling", "Structure", "Model", "Loading", "Speed",
)  # fmt: skip
def run(options: Options) -> None:
    """Answer a prompt with a model, or chat with it.

    With a prompt, as an argument or on standard input, this is llmctl generate. Without one it is llmctl chat.

    Examples:

      llmctl run Qwen/Qwen3-4B

      llmctl run Qwen/Qwen3-4B "What is the capital of France?"

      cat report.txt | llmctl run Qwen/Qwen3-4B "Summarise this:"
    """
    given = any(map(options.is_given, (PROMPT_ARGUMENT, PROMPT, PROMPT_FILE, IMAGE)))
    if not given and sys.stdin.isatty():
        from llmctl.cli._chat_screen import DisplayOptions
        from llmctl.cli.chat import converse

        converse(options, resume=None, display=DisplayOptions())
        return
    from llmctl.cli._image_input import read_prompt_input
    from llmctl.cli.generate import answer

    answer(options.output, options.settings(), read_prompt_input(options), count=1, offline=options[OFFLINE])
