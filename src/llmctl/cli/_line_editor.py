"""The input line of a conversation: history, several lines, completion."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_BLOCK = '"""'


class Editor:
    """Reads messages from the terminal and keeps their history in a file that only its owner can read.

    Args:
        history: The file.
        words: The completions: each command with the words that may follow it, as in {"/set": ["temperature"]}.
    """

    def __init__(self, history: Path, words: dict[str, Sequence[str]]) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            completer=_Words(words),
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
        )

    def message(self, default: str = "") -> str:
        """Read one message of one or several lines.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C on an empty line; otherwise it clears the line.
        """
        with _no_interrupt_between_keys():
            return without_quotes(self._session.prompt("> ", default=default))

    def confirm(self, question: str, default: bool) -> bool:
        """Ask a question; an empty answer means `default`. Raises the errors of `message`."""
        session: PromptSession[str] = PromptSession()
        with _no_interrupt_between_keys():
            answer = session.prompt(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
        return answer in ("y", "yes") if answer else default


def _history(file: Path) -> History:
    """Return the history in a file, or one that ends with the process if the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        file.chmod(0o600)
        file.read_bytes()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


@contextmanager
def _no_interrupt_between_keys() -> Iterator[None]:
    """Ignore SIGINT while a line is edited: Ctrl-C is then a key, and a signal could break the event loop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def needs_more(text: str) -> bool:
    """Return True if Enter starts a new line instead of sending: after a backslash, and inside triple quotes."""
    block = text.strip()
    open_block = block.startswith(_BLOCK) and (len(block) < 2 * len(_BLOCK) or not block.endswith(_BLOCK))
    return open_block or text.endswith("\\")


def without_quotes(text: str) -> str:
    """Return the text inside a block of triple quotes, or the text itself."""
    block = text.strip()
    if block.startswith(_BLOCK) and block.endswith(_BLOCK) and len(block) >= 2 * len(_BLOCK):
        return block[len(_BLOCK) : -len(_BLOCK)].strip("\n")
    return text


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not needs_more(buffer.document.text_before_cursor):
            buffer.validate_and_handle()
            return
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
        buffer.newline(copy_margin=False)

    @keys.add("c-c", filter=Condition(lambda: bool(get_app().current_buffer.text)))
    def _clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _Words(Completer):
    """Completes a command at the start of a line, then the first word after it."""

    def __init__(self, words: dict[str, Sequence[str]]) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: Any) -> Iterator[Completion]:
        command, space, rest = document.text_before_cursor.partition(" ")
        candidates = self._words.get(command, ()) if space else tuple(self._words)
        prefix = rest if space else command
        if prefix.startswith("/") or space:
            yield from (Completion(word, start_position=-len(prefix)) for word in candidates if word.startswith(prefix))
