"""A conversation on the screen: the display of an answer, and the question when the context is nearly full."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli._completion import (
    finish_text,
    logprobs_document,
    note_logprobs,
    speed_text,
    statistics_document,
    statistics_lines,
)
from llmctl.cli._markdown import MarkdownStream
from llmctl.cli._render import Output
from llmctl.errors import LlmctlError
from llmctl.generation.pieces import ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from llmctl.generation.chat.conversation import ChatSession, Pieces, Turn
    from llmctl.generation.pieces import Piece
    from llmctl.loading.model import LoadedModel


@dataclass
class DisplayOptions:
    """The parts of an answer that are shown. Changed by `/set`.

    Attributes:
        stats: Show a line of statistics after each answer.
        markdown: Render Markdown.
        reasoning: Show reasoning, dimmed.
    """

    stats: bool = True
    markdown: bool = True
    reasoning: bool = True


@dataclass
class Conversation:
    """A chat session on the screen.

    Attributes:
        session: The conversation.
        output: The output of this run.
        load: Loads another model by name, for `/model`.
        confirm: Asks a question; without a terminal the answer is yes.
        edit: Lets the user edit a text.
        display: The parts of an answer that are shown.
        file: The file of `/save` without a name.
    """

    session: "ChatSession"
    output: Output
    load: "Callable[[str], LoadedModel]"
    confirm: Callable[[str], bool] = lambda _: True
    edit: Callable[[str], str] = lambda text: text
    display: DisplayOptions = field(default_factory=DisplayOptions)
    file: Path | None = None

    def ask(self, text: str) -> None:
        """Send a message and show the answer."""
        self.make_room(text)
        self.show(self.session.stream(text))

    def retry(self) -> None:
        """Answer the last message again and show the answer."""
        self.make_room(self.session.last_text, replace_last=True)
        self.show(self.session.retry())

    def replace(self, text: str) -> None:
        """Replace the last message and show the answer."""
        if text.strip():
            self.make_room(text, replace_last=True)
        self.show(self.session.edit(text))

    def show(self, pieces: "Pieces") -> None:
        """Show an answer as it arrives. Ctrl-C stops it; the partial answer is kept."""
        printer, stopped = _Printer(self.output, self.display), False
        before = self.session.last
        with _first_interrupt_only():
            try:
                with closing(pieces):
                    for piece in pieces:
                        printer.add(piece)
            except KeyboardInterrupt:
                stopped = True
            printer.finish()
        if stopped:
            kept = self.session.last is not before
            self.output.note("stopped; " + ("the partial answer is kept" if kept else "there was no answer yet"))
        elif self.display.stats and self.session.last is not None:
            self.output.note(statistics(self.session.last))
        if not stopped and self.session.last is not None and self.session.last.completion is not None:
            note_logprobs(self.output, self.session.loaded, self.session.last.completion)

    def make_room(self, text: str, *, replace_last: bool = False) -> None:
        """Warn if the context is nearly full, and offer to drop the oldest turns if there are any."""
        usage = self.session.context_usage(text, replace_last=replace_last)
        turns = sum(message.role == "user" for message in self.session.messages)
        if not usage.is_tight or turns <= replace_last:
            return
        left = max(usage.left or 0, 0)
        self.output.warn(
            f"the context is nearly full: {usage.prompt_tokens} of {usage.context_length} tokens, {left} left"
        )
        if self.confirm("drop the oldest turns?"):
            dropped = self.session.drop_oldest(text, replace_last=replace_last)
            self.output.note(f"dropped the oldest {dropped} messages")

    def switch_model(self, name: str) -> None:
        """Switch to another model; return to the current one if that fails."""
        from llmctl.loading.loader import load_prepared

        before = self.session.release()
        try:
            loaded = self.load(name)
        except (LlmctlError, KeyboardInterrupt):
            self.session.use(load_prepared(before))
            raise
        self.session.use(loaded)


class _Printer:
    """Shows one answer. Its state: the Markdown so far, and if reasoning came last."""

    def __init__(self, output: Output, display: DisplayOptions) -> None:
        self._output, self._display = output, display
        self._markdown = MarkdownStream()
        self._after_reasoning = False

    def add(self, piece: "Piece") -> None:
        if isinstance(piece, ReasoningDelta):
            if self._display.reasoning:
                self._after_reasoning = True
                self._output.styled(piece.text, "dim")
            return
        if not isinstance(piece, TextDelta):
            return
        if self._after_reasoning:
            self._output.piece("\n\n")
        self._after_reasoning = False
        if not self._display.markdown:
            self._output.piece(piece.text)
            return
        for span in self._markdown.add(piece.text):
            self._output.styled(span.text, span.style)

    def finish(self) -> None:
        for span in self._markdown.finish():
            self._output.styled(span.text, span.style)
        self._output.piece("\n")


@contextmanager
def _first_interrupt_only() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first Ctrl-C and ignore further ones, so that the answer is stored intact."""

    def interrupt(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def statistics(turn: "Turn") -> str:
    """Return the line of statistics after an answer."""
    prompt = f"{turn.prompt_tokens} tokens in, {turn.prefilled_tokens} of them new"
    completion = turn.completion
    if completion is None:
        return f"{prompt}; stopped"
    line = f"{prompt}, {len(completion.token_ids)} out, {speed_text(completion)}; {finish_text(completion)}"
    return "\n".join([line, *statistics_lines(completion)])


def turn_document(session: "ChatSession") -> str:
    """Return one answer as a line of JSON."""
    from llmctl.generation.structured.structure import parsed_value

    turn, message = session.last, session.messages[-1]
    completion = turn.completion if turn else None
    document: dict[str, Any] = {"schema": "llmctl.chat_turn/1", "text": message.content}
    if message.reasoning:
        document["reasoning"] = message.reasoning
    if turn is not None and completion is not None:
        document |= parsed_value(completion)
        document |= {
            "finish_reason": completion.finish_reason,
            "length_limit": completion.length_limit,
            "seed": completion.seed,
            "prompt_tokens": turn.prompt_tokens,
            "prefilled_tokens": turn.prefilled_tokens,
            "completion_tokens": len(completion.token_ids),
            "first_token_seconds": round(completion.first_token_seconds, 4),
            "seconds": round(completion.seconds, 4),
            **statistics_document(completion),
        }
        document |= logprobs_document(session.loaded, completion)
    return json.dumps(document, ensure_ascii=False)
