"""The commands of a conversation: `/help`, `/undo` and the others."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from llmctl.cli._chat_screen import Conversation, DisplayOptions
from llmctl.cli._dropped_files import leading_images
from llmctl.cli._flags import generation_keys
from llmctl.errors import UserError
from llmctl.generation.chat import transcript
from llmctl.paths import expand
from llmctl.plan.decision import shortened
from llmctl.synonyms import CHAT_COMMANDS, CHAT_SETTINGS, find_synonym
from llmctl.synonyms import COMMANDS as SHELL_COMMANDS

_SWITCHES = {"on": True, "off": False, "show": True, "hide": False}
_ELSEWHERE = {"chat.system": "/system", "chat.thinking": "/set thinking", "model.id": "/model"}
_LOAD_TIME_KEY = "extra_eos_tokens"  # fixed when the model is loaded
_DISPLAY_OPTIONS = tuple(DisplayOptions.__dataclass_fields__)
_SESSION_OPTIONS = {"reuse": "reuse", "loop_guard": "stops_loops"}  # names for `/set`, and attributes of the session


class Leave(Exception):  # noqa: N818 (not an error)
    """`/exit` was typed."""


class Entry(NamedTuple):
    """A row of the table of commands: its arguments, its summary, and the function."""

    arguments: str
    summary: str
    act: Callable[[Conversation, str], None]


def run(conversation: Conversation, line: str) -> None:
    """Run the command of a line that starts with `/`.

    Raises:
        UserError: there is no such command, or it fails.
        Leave: the command is `/exit`.
    """
    name, _, argument = line.strip().partition(" ")
    entry = COMMANDS.get(CHAT_COMMANDS.get(name, name))
    if entry is None:
        raise UserError(f"there is no command {name}", hint=_hint(name))
    entry.act(conversation, argument.strip())


def _hint(name: str) -> str:
    """Return what to type instead of a command that does not exist."""
    word = name.removeprefix("/")
    if word in SHELL_COMMANDS:
        return f"in a shell: llmctl {' '.join(SHELL_COMMANDS[word])}"
    close = get_close_matches(name, (*COMMANDS, *CHAT_COMMANDS), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else "/help lists them; a space before / sends it as a message"


def completions() -> dict[str, Sequence[str]]:
    """Return the completions: the commands, and the names that `/set` takes."""
    names = (*_DISPLAY_OPTIONS, *_SESSION_OPTIONS, "thinking", *generation_keys())
    return {name: names if name == "/set" else () for name in COMMANDS}


def _help(conversation: Conversation, _: str) -> None:
    conversation.output.pairs(
        [(f"{name} {entry.arguments}".strip(), entry.summary) for name, entry in COMMANDS.items()]
    )
    conversation.output.line('Enter sends. A new line: Alt-Enter, a final backslash, or a block between """.')
    conversation.output.line("Ctrl-C stops an answer; at an empty prompt it leaves, like Ctrl-D.")


def _system(conversation: Conversation, text: str) -> None:
    session = conversation.session
    if text:
        session.system = "" if text in ("none", '""') else text
    conversation.output.line(f"system prompt: {session.system or 'none'}")


def _set(conversation: Conversation, argument: str) -> None:
    argument = argument.removeprefix("parameter ")  # /set parameter NAME VALUE, as ollama has it
    name, _, value = CHAT_SETTINGS.get(argument, argument).partition(" ")
    value = value.strip()
    if name == "system":
        _system(conversation, value)
        return
    name = _own_name(name, value or "VALUE")
    if not name:
        _show(conversation, "")
    elif not value:
        raise UserError(f"/set {name}: the value is missing", hint=f"/set {name} VALUE; /show has all values")
    elif name in (*_DISPLAY_OPTIONS, *_SESSION_OPTIONS, "thinking"):
        if value not in _SWITCHES:
            raise UserError(f"/set {name}: expected on, off, show or hide, not {value}")
        if name == "thinking":
            conversation.session.set_thinking(_SWITCHES[value])
        elif name in _SESSION_OPTIONS:
            setattr(conversation.session, _SESSION_OPTIONS[name], _SWITCHES[value])
        else:
            setattr(conversation.display, name, _SWITCHES[value])
    elif name == _LOAD_TIME_KEY:
        raise UserError(f"/set {name}: fixed when the model is loaded", hint=f"start with --set generation.{name}=[…]")
    else:
        conversation.session.set_generation(**{generation_keys().get(name, name): value})


def _own_name(name: str, value: str) -> str:
    """Return the name that `/set` takes for a name of another tool.

    Raises:
        UserError: the name means something that cannot be set during a conversation.
    """
    synonym = None if name in generation_keys() else find_synonym(name)
    if synonym is None:
        return name
    section, _, leaf = synonym.key.rpartition(".")
    if synonym.value is None and (section == "generation" or synonym.key == "seed"):
        return leaf
    if synonym.key in _ELSEWHERE:
        raise UserError(f"/set {name}: not a setting of this name", hint=f"did you mean {_ELSEWHERE[synonym.key]}?")
    hint = f"instead: {synonym.advice}" if synonym.advice else f"start with --set {synonym.key}={value}"
    raise UserError(f"/set {name}: fixed when the model is loaded", hint=hint)


def _show(conversation: Conversation, _: str) -> None:
    session, display = conversation.session, conversation.display
    plan = session.loaded.plan
    choice = plan.generation
    values = {**choice.values, **({"max_new_tokens": "rest of the context"} if session.fills_context else {})}
    generation = [(name, f"{shortened(value)} ({choice.sources[name]})") for name, value in values.items()]
    generation += [(name, str(value)) for name, value in plan.generation_kwargs.items() if name not in choice.values]
    conversation.output.pairs(
        [
            ("model", plan.source),
            ("system", session.system or "none"),
            ("messages", str(len(session.messages))),
            *generation,
            ("seed", "drawn for each answer" if plan.seed is None else str(plan.seed)),
            *((name, "on" if getattr(display, name) else "off") for name in _DISPLAY_OPTIONS),
            *((name, "on" if getattr(session, key) else "off") for name, key in _SESSION_OPTIONS.items()),
            ("thinking", {None: "as the template has it", True: "on", False: "off"}[session.thinking]),
        ]
    )


def _retry(conversation: Conversation, _: str) -> None:
    if not conversation.session.loaded.plan.generation_kwargs.get("do_sample"):
        conversation.output.note("without sampling the answer stays the same; try /set temperature 0.8")
    conversation.retry()


def _undo(conversation: Conversation, _: str) -> None:
    text = conversation.session.undo()
    conversation.output.line(f"removed: {text.splitlines()[0][:70]}")


def _edit(conversation: Conversation, text: str) -> None:
    conversation.replace(text or conversation.edit(conversation.session.last_text))


def _image(conversation: Conversation, argument: str) -> None:
    if argument == "none":
        conversation.attached = []
    elif argument:
        files, rest = leading_images(argument)
        for file in files if files and not rest else [_file(argument)]:
            conversation.attach(file)
    names = ", ".join(image.name for image in conversation.attached) or "none"
    conversation.output.line(f"images of the next message: {names}")


def _save(conversation: Conversation, argument: str) -> None:
    file = _file(argument) if argument else conversation.file
    if file is None:
        raise UserError("/save: the file is missing", hint="/save FILE")
    if file != conversation.file:
        _check_overwriting(conversation, file)
    transcript.save(conversation.session.transcript(), file)
    conversation.file = file
    conversation.output.line(f"saved {len(conversation.session.messages)} messages in {file}")


def _load(conversation: Conversation, argument: str) -> None:
    if not argument:
        raise UserError("/load: the file is missing", hint="/load FILE")
    file = _file(argument)
    loaded = transcript.read(file)
    session = conversation.session
    session.clear()
    conversation.attached = []
    session.messages, session.system = list(loaded.messages), loaded.system
    conversation.file = file
    conversation.output.line(f"{len(loaded.messages)} messages from {file}")
    if loaded.model != session.loaded.plan.source:
        conversation.output.note(f"they are from {loaded.model}; the current model is {session.loaded.plan.source}")


def _export(conversation: Conversation, argument: str) -> None:
    if not argument:
        raise UserError("/export: the file is missing", hint="/export FILE.md")
    file = _file(argument)
    _check_overwriting(conversation, file)
    transcript.export_markdown(conversation.session.transcript(), file)
    conversation.output.line(f"exported to {file}")


def _check_overwriting(conversation: Conversation, file: Path) -> None:
    """Ask before a file is replaced. Raise UserError if the answer is no."""
    if file.exists() and not conversation.confirm(f"{file} exists. Replace it?", False):
        raise UserError(f"{file} was not changed", hint="give another name")


def _continue(conversation: Conversation, _: str) -> None:
    conversation.continue_answer()


def _tokens(conversation: Conversation, _: str) -> None:
    usage = conversation.session.context_usage()
    context = f" of {usage.context_length}, {usage.left} left" if usage.context_length is not None else ""
    conversation.output.line(f"{usage.prompt_tokens} tokens{context}")


def _clear(conversation: Conversation, _: str) -> None:
    conversation.session.clear()
    conversation.attached = []
    conversation.output.line("the conversation is empty; the system prompt is kept")


def _model(conversation: Conversation, name: str) -> None:
    if name:
        conversation.switch_model(name)
    conversation.output.line(f"model: {conversation.session.loaded.plan.source}")


def _exit(_conversation: Conversation, _: str) -> None:
    raise Leave


def _file(argument: str) -> Path:
    return expand(argument)


COMMANDS = {
    "/help": Entry("", "List the commands.", _help),
    "/system": Entry("[TEXT]", "Show or set the system prompt; none removes it.", _system),
    "/set": Entry(
        "NAME VALUE",
        "Set stats, markdown, reasoning, reuse, loop_guard or thinking (on, off), or a sampling flag.",
        _set,
    ),
    "/show": Entry("", "Show the model and every setting.", _show),
    "/image": Entry("[FILE]", "Attach an image to the next message; none removes it.", _image),
    "/continue": Entry("", "Continue an answer that a limit or Ctrl-C has ended.", _continue),
    "/retry": Entry("", "Answer the last message again, with the next seed.", _retry),
    "/undo": Entry("", "Remove the last message and its answer.", _undo),
    "/edit": Entry("[TEXT]", "Edit the last message and answer it again.", _edit),
    "/save": Entry("[FILE]", "Save the conversation as JSON Lines.", _save),
    "/load": Entry("FILE", "Continue a saved conversation.", _load),
    "/export": Entry("FILE", "Write the conversation as Markdown.", _export),
    "/tokens": Entry("", "Show how much of the context is used.", _tokens),
    "/clear": Entry("", "Remove every message.", _clear),
    "/model": Entry("[MODEL]", "Show the model, or continue with another.", _model),
    "/exit": Entry("", "Leave.", _exit),
}
