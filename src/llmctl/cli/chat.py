"""`llmctl chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import file, switch
from llmctl.cli._flags import ADAPTER, MODEL, MODEL_ARGUMENT, OFFLINE, REVISION, STREAM, SYSTEM
from llmctl.cli._loading import load_model, prepare_model
from llmctl.cli._options import Options
from llmctl.cli._text_input import stdin_lines
from llmctl.errors import LlmctlError, UserError

if TYPE_CHECKING:
    from llmctl.cli._chat_screen import Conversation, DisplayOptions
    from llmctl.generation.chat.transcript import Transcript
    from llmctl.loading.model import LoadedModel

app = new_app()

RESUME = file("--resume", group="Chat", help="Saved conversation to continue")
HIDE_REASONING = switch("--hide-reasoning", group="Chat", help="Hide the model's reasoning")
NO_STATS = switch("--no-stats", group="Chat", help="Omit the line of statistics after each answer")


@command(
    app, MODEL_ARGUMENT, STREAM, RESUME, SYSTEM, "--template", "--think", HIDE_REASONING, NO_STATS, "Sampling",
    "Structure", "Model", "Loading", "Speed",
)  # fmt: skip
def chat(options: Options) -> None:
    """Chat with a model on the terminal, without a server.

    /help lists the commands of a conversation; /image FILE, or a picture dropped on the terminal, goes with the next
    message. Ctrl-C stops an answer; at the prompt it clears the line, or exits if
    the line is empty. In a pipe, every line of standard input is a message and every answer goes to standard output;
    with --json as one object per line.

    Examples:

      llmctl chat

      llmctl chat Qwen/Qwen3-4B

      llmctl chat --system "Answer in one sentence." --temperature 0.7

      llmctl chat --resume talk.jsonl

      printf 'Hello\\nAnd in French?\\n' | llmctl chat --no-stats
    """
    from llmctl.cli._chat_screen import DisplayOptions

    display = DisplayOptions(stats=not options[NO_STATS], reasoning=not options[HIDE_REASONING])
    converse(options, resume=options[RESUME], display=display)


def converse(options: Options, *, resume: Path | None, display: "DisplayOptions") -> None:
    """Hold a conversation, a saved one if there is one, on the terminal or through pipes."""
    from llmctl.generation.chat import transcript

    saved = transcript.read(resume) if resume is not None else None
    conversation = _start(options, saved, display=display, file=resume)
    if options.output.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _pipe(conversation)
    else:
        _talk(conversation, saved)


def _start(
    options: Options, saved: "Transcript | None", *, display: "DisplayOptions", file: Path | None
) -> "Conversation":
    """Load the model and return the conversation, saved messages included."""
    from llmctl.cli._chat_screen import Conversation
    from llmctl.generation.chat.conversation import ChatSession

    def load(name: str | None, revision: str | None = None) -> "LoadedModel":
        settings = options.settings(
            replace={"model.id": name, "model.revision": revision, "model.adapters": options[ADAPTER] or None}
        )
        return load_model(options.output, prepare_model(options.output, settings, offline=options[OFFLINE]))

    model = options.either(MODEL_ARGUMENT, MODEL)
    if saved is not None and model is None:
        loaded = load(saved.model, options[REVISION] or saved.commit)
    else:
        loaded = load(model, options[REVISION])
    if loaded.config.chat.raw:
        raise UserError("chat.raw: a conversation needs the chat template", hint="omit chat.raw")
    session = ChatSession(
        loaded,
        system=saved.system if saved is not None and options[SYSTEM] is None else None,
        messages=saved.messages if saved is not None else (),
        stops_loops=True,
    )
    return Conversation(session, options.output, load, display=display, file=file)


def _pipe(conversation: "Conversation") -> None:
    """Answer one message per line of standard input; the answers go to standard output, without reasoning."""
    from llmctl.cli._chat_screen import LOOP_TEXT, statistics, turn_document
    from llmctl.generation.pieces import TextDelta

    session, output = conversation.session, conversation.output
    for text in stdin_lines():
        if not text.strip():
            continue
        conversation.make_room(text)
        for piece in session.stream(text):
            if isinstance(piece, TextDelta) and not output.as_json:
                output.piece(piece.text)
        output.line(turn_document(session) if output.as_json else "")
        if conversation.display.stats and session.last is not None:
            output.note(statistics(session, session.last))
        if session.last is not None and session.last.is_loop:
            output.warn(LOOP_TEXT)


def _talk(conversation: "Conversation", saved: "Transcript | None") -> None:
    """Read messages and commands from the terminal until the user exits."""
    from llmctl.cli import _chat_commands as chat_commands
    from llmctl.cli._dropped_files import leading_images
    from llmctl.cli._line_editor import Editor
    from llmctl.paths import state_dir

    output = conversation.output
    editor = Editor(state_dir() / "chat_history", chat_commands.completions())
    conversation.confirm, conversation.edit = editor.confirm, editor.message
    if saved is not None:
        output.note(f"{len(saved.messages)} messages from {conversation.file}")
    output.note("/help shows the commands, Ctrl-D exits")
    while True:
        try:
            typed, conversation.typed = conversation.typed, ""
            text = editor.message(typed)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            files, text = leading_images(text) if conversation.takes_images else ([], text)
            for dropped in files:
                conversation.attach(dropped)
            if files and not text:
                output.note("type a message about it; /image none removes it")
            elif text.startswith("/") and not files:
                chat_commands.run(conversation, text)
            elif text.strip():
                conversation.ask(text)
        except chat_commands.Leave:
            return
        except LlmctlError as error:
            output.error(error)
        except (EOFError, KeyboardInterrupt):
            output.note("stopped; the conversation is unchanged")
