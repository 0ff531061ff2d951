"""A conversation on the screen: the display of an answer, and the question when the context is nearly full."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
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
from llmctl.cli._render import Output, terminal_columns
from llmctl.cli._text_input import typed_text
from llmctl.errors import LlmctlError
from llmctl.generation.pieces import ReasoningDelta, TextDelta
from llmctl.platform_support import unechoed_input

if TYPE_CHECKING:
    from llmctl.generation.chat.attachments import Attachment
    from llmctl.generation.chat.conversation import ChatSession, Pieces
    from llmctl.generation.chat.turn import Turn
    from llmctl.generation.pieces import Piece
    from llmctl.loading.model import LoadedModel


LOOP_TEXT = "stopped: the answer repeats itself"
_LOOP_COMMANDS = (
    "/continue continues it, /retry answers again; /set repetition_penalty 1.1 makes repetition less likely, "
    "/set loop_guard off never stops"
)


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
        confirm: Asks a question, with the answer that an empty line gives; without a terminal that is the answer.
        edit: Lets the user edit a text.
        display: The parts of an answer that are shown.
        file: The file of `/save` without a name.
        typed: The text that was typed during the last answer.
        attached: Images of the next message.
    """

    session: "ChatSession"
    output: Output
    load: "Callable[[str], LoadedModel]"
    confirm: Callable[[str, bool], bool] = lambda _, default: default
    edit: Callable[[str], str] = lambda text: text
    display: DisplayOptions = field(default_factory=DisplayOptions)
    file: Path | None = None
    typed: str = ""
    attached: "list[Attachment]" = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Send a message with the attached images and show the answer."""
        self.make_room(text, images=self.attached)
        earlier = self.session.last
        try:
            self.show(self.session.stream(text, images=self.attached))
        finally:
            if self.session.last is not earlier:
                self.attached = []

    @property
    def takes_images(self) -> bool:
        """True if the model may take images."""
        from llmctl.generation.image_processor import LazyImageProcessor

        return LazyImageProcessor(self.session.loaded).takes_images

    def attach(self, file: Path) -> None:
        """Attach an image to the next message.

        Raises:
            UserError: it cannot be read, or the model takes no images.
            MachineError: a package is missing.
        """
        from llmctl.generation.chat.attachments import attach
        from llmctl.generation.image_processor import LazyImageProcessor

        processor = LazyImageProcessor(self.session.loaded)()
        [image] = attach([file])
        processor.process([image.picture])
        self.attached.append(image)
        self.output.note(f"attached {image.name} ({image.picture.width} x {image.picture.height})")

    def retry(self) -> None:
        """Answer the last message again and show the answer."""
        self.make_room(self.session.last_text, replace_last=True)
        self.show(self.session.retry())

    def continue_answer(self) -> None:
        """Continue the last answer and show the rest."""
        if self.session.messages:
            self.make_room(continues=True)
        before = self.session.messages[-1].content if self.session.messages else ""
        self.show(self.session.continue_answer(), before=before)

    def replace(self, text: str) -> None:
        """Replace the last message and show the answer."""
        if text.strip():
            self.make_room(text, replace_last=True)
        self.show(self.session.edit(text))

    def show(self, pieces: "Pieces", *, before: str = "") -> None:
        """Show an answer as it arrives. Ctrl-C stops it; the partial answer is kept.

        Text typed meanwhile is not echoed into the answer; it is kept for the next message.

        Args:
            before: The beginning of the answer, which was shown earlier.
        """
        printer, stopped = _Printer(self.output, self.display, before=before), False
        earlier = self.session.last
        with unechoed_input() as typed, _first_interrupt_only():
            try:
                with closing(pieces):
                    for piece in pieces:
                        printer.add(piece)
            except KeyboardInterrupt:
                stopped = True
            finally:
                printer.finish()
                self.typed += typed_text(typed())
        if stopped:
            kept = self.session.last is not earlier
            self.output.note("stopped; " + ("the partial answer is kept" if kept else "there was no answer yet"))
        elif self.session.last is not None:
            self._report(self.session.last)

    def _report(self, turn: "Turn") -> None:
        """Report how an answer ended."""
        if self.display.stats:
            self.output.note(statistics(self.session, turn))
        if turn.is_loop:
            self.output.warn(f"{LOOP_TEXT}. {_LOOP_COMMANDS}")
        if turn.completion is None:
            return
        note_logprobs(self.output, self.session.loaded, turn.completion)
        if turn.completion.length_limit == "max_new_tokens":
            self.output.note("/continue continues the answer")

    def make_room(
        self,
        text: str = "",
        *,
        images: "Sequence[Attachment]" = (),
        replace_last: bool = False,
        continues: bool = False,
    ) -> None:
        """Warn if the context is nearly full, and offer to drop the oldest turns if there are any."""
        usage = self.session.context_usage(text, images=images, replace_last=replace_last)
        turns = sum(message.role == "user" for message in self.session.messages)
        if not usage.is_tight or turns <= (replace_last or continues):
            return
        left = max(usage.left or 0, 0)
        self.output.warn(
            f"the context is nearly full: {usage.prompt_tokens} of {usage.context_length} tokens, {left} left"
        )
        if self.confirm("drop the oldest turns?", True):
            dropped = self.session.drop_oldest(text, images=images, replace_last=replace_last, continues=continues)
            self.output.note(f"dropped the oldest {dropped} messages")

    def switch_model(self, name: str) -> None:
        """Switch to another model; return to the current one if that fails."""
        from llmctl.loading.device_memory import release_memory
        from llmctl.loading.loader import load_prepared

        before = self.session.release()
        failure: BaseException | None = None
        try:
            loaded = self.load(name)
        except (LlmctlError, KeyboardInterrupt) as error:
            failure = error
        if failure is not None:  # outside of the except clause: the traceback holds what was loaded of the other model
            release_memory(failure)
            loaded = load_prepared(before)
        self.session.use(loaded)
        if failure is not None:
            raise failure


class _Printer:
    """Shows one answer. Its state: the Markdown so far, and if reasoning came last.

    Args:
        before: The text of the answer that is on the screen already.
    """

    def __init__(self, output: Output, display: DisplayOptions, *, before: str = "") -> None:
        self._display, self._prose = display, output.prose()
        self._markdown = MarkdownStream(terminal_columns)
        for _ in self._markdown.add(before):
            pass
        self._after_reasoning = self._has_text = False
        self._continues = bool(before)

    def add(self, piece: "Piece") -> None:
        if self._continues and isinstance(piece, TextDelta):  # it begins a line on the screen
            self._continues = not (text := piece.text.lstrip(" "))
            piece = TextDelta(text)
        self._has_text = True
        if isinstance(piece, ReasoningDelta):
            if self._display.reasoning:
                self._after_reasoning = True
                self._prose.write(piece.text, "dim")
            return
        if not isinstance(piece, TextDelta):
            return
        if self._after_reasoning:
            self._prose.write("\n\n")
        self._after_reasoning = False
        if not self._display.markdown:
            self._prose.write(piece.text)
            return
        for span in self._markdown.add(piece.text):
            self._prose.write(span.text, span.style)

    def finish(self) -> None:
        for span in self._markdown.finish():
            self._prose.write(span.text, span.style)
        if self._has_text:
            self._prose.write("\n")


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


def statistics(session: "ChatSession", turn: "Turn") -> str:
    """Return the line of statistics after an answer."""
    prompt = f"{turn.prompt_tokens} tokens in, {turn.prefilled_tokens} of them new"
    completion = turn.completion
    if completion is None:
        return f"{prompt}; stopped"
    seed = f", seed {turn.seed}" if session.loaded.plan.generation_kwargs.get("do_sample") else ""
    line = f"{prompt}, {len(completion.token_ids)} out, {speed_text(completion)}{seed}; {finish_text(completion)}"
    return "\n".join([line, *statistics_lines(completion)])


def turn_document(session: "ChatSession") -> str:
    """Return one answer as a line of JSON."""
    from llmctl.generation.structured.structure import parsed_value

    turn, message = session.last, session.messages[-1]
    completion = turn.completion if turn else None
    document: dict[str, Any] = {"schema": "llmctl.chat_turn/1", "text": message.content}
    if message.reasoning:
        document["reasoning"] = message.reasoning
    if turn is not None and turn.is_loop:
        document["finish_reason"] = "repetition"
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
