"""`llmctl chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._command import Command, new_app
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
    GrammarOption,
    JsonSchemaOption,
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
    prepare_model,
    settings_asked,
)
from llmctl.cli._render import Output
from llmctl.errors import LlmctlError, UserError

if TYPE_CHECKING:
    from llmctl.cli._chat_screen import Conversation
    from llmctl.generation.chat.transcript import Transcript
    from llmctl.loading.model import LoadedModel

app = new_app()


@app.command(cls=Command)
def chat(
    ctx: typer.Context,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with a saved conversation.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.", show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="A Jinja chat template's file.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        str | None, typer.Option("--max-new-tokens", "-n", help="Most tokens of an answer.", show_default=False)
    ] = None,
    temperature: Annotated[
        str | None, typer.Option("--temperature", "-t", help="0 is greedy; above 0 samples.", show_default=False)
    ] = None,
    top_p: Annotated[str | None, typer.Option("--top-p", help="Nucleus sampling.", show_default=False)] = None,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    choices: ChoicesOption = None,
    grammar: GrammarOption = None,
    seed: SeedOption = None,
    hide_reasoning: Annotated[bool, typer.Option("--hide-reasoning", help="Do not show reasoning.")] = False,
    no_stats: Annotated[bool, typer.Option("--no-stats", help="No line of figures after an answer.")] = False,
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
    offline: OfflineOption = False,
) -> None:
    """Talk with a model, without a server.

    /help shows what can be typed besides messages. Ctrl-C stops an answer; at the prompt it clears what
    is typed, and leaves where nothing is. In a pipe, every line of standard input is a message and every answer goes to
    standard output; with --json as one object a line.

    Examples:

      llmctl chat

      llmctl chat --system "Answer in one sentence." --temperature 0.7

      llmctl chat --resume talk.jsonl

      printf 'Hello\\nAnd in French?\\n' | llmctl chat --no-stats
    """
    from llmctl.cli._chat_screen import Conversation, Looks
    from llmctl.generation.chat import transcript
    from llmctl.generation.chat.conversation import ChatSession

    output: Output = ctx.obj
    saved = transcript.read(resume) if resume is not None else None

    def load(name: str | None, at: str | None = None, adapters: list[str] | None = None) -> "LoadedModel":
        settings = settings_asked(ctx, model=name, revision=at, adapter=adapters)
        return _load(settings, output, offline=offline)

    if saved is not None and model is None:
        loaded = load(saved.model, revision or saved.commit, adapter or None)
    else:
        loaded = load(model, revision, adapter or None)
    if loaded.config.chat.raw:
        raise UserError("chat.raw: a conversation needs the chat template", hint="leave chat.raw away")
    session = ChatSession(
        loaded,
        system=saved.system if saved is not None and system is None else None,
        messages=saved.messages if saved is not None else (),
    )
    looks = Looks(stats=not no_stats, reasoning=not hide_reasoning)
    conversation = Conversation(session, output, load, looks=looks, file=resume)
    if output.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _pipe(conversation)
    else:
        _talk(conversation, saved)


def _load(settings: Any, output: Output, *, offline: bool) -> "LoadedModel":
    from llmctl.loading.loader import load_prepared

    prepared = prepare_model(output, settings, offline=offline)
    with output.waiting(f"loading {prepared.located.source}"):
        loaded = load_prepared(prepared)
    for decision in loaded.plan.decisions:
        output.detail(str(decision))
    return loaded


def _pipe(conversation: "Conversation") -> None:
    """One message a line from standard input; the answers go to standard output, without reasoning."""
    from llmctl.cli._chat_screen import statistics, turn_document

    session, output = conversation.session, conversation.output
    try:
        for line in sys.stdin:
            text = line.rstrip("\n")
            if not text.strip():
                continue
            conversation.make_room(text)
            for piece in session.ask(text):
                if piece.kind == "answer" and not output.as_json:
                    output.piece(piece.text)
            output.line(turn_document(session) if output.as_json else "")
            if conversation.looks.stats and session.last is not None:
                output.note(statistics(session.last))
    except UnicodeDecodeError as error:
        raise UserError("standard input is not UTF-8 text") from error


def _talk(conversation: "Conversation", saved: "Transcript | None") -> None:
    """Messages and commands from the terminal until the person leaves."""
    from llmctl.cli import _chat_commands as chat_commands
    from llmctl.cli._line_editor import Editor
    from llmctl.paths import state_dir

    output = conversation.output
    editor = Editor(state_dir() / "chat_history", chat_commands.completions())
    conversation.confirm, conversation.edit = editor.confirm, editor.message
    if saved is not None:
        output.note(f"{len(saved.messages)} messages from {conversation.file}")
    output.note("/help shows the commands, Ctrl-D leaves")
    while True:
        try:
            text = editor.message()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if text.startswith("/"):
                chat_commands.run(conversation, text)
            elif text.strip():
                conversation.ask(text)
        except chat_commands.Leave:
            return
        except LlmctlError as error:
            output.error(error)
        except (EOFError, KeyboardInterrupt):
            output.note("stopped; the conversation is as it was")
