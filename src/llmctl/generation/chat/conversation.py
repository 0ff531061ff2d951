"""A conversation with a loaded model, whose engine keeps keys and values between turns."""

import gc
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import UserError
from llmctl.generation.chat.transcript import Message, Transcript
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, engine_for_chat
from llmctl.generation.overrides import with_generation
from llmctl.generation.pieces import Piece, TextDelta, reasoning_of, text_of
from llmctl.generation.prompt import Ending, Prompt, check_chat, encode_prompt
from llmctl.generation.prompt_length import check_length
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared


Pieces = Generator[Piece, None, None]


@dataclass(frozen=True)
class Turn:
    """The measurements of one answer.

    Attributes:
        prompt_tokens: Tokens of the whole conversation before the answer.
        prefilled_tokens: Prompt tokens computed in this turn; the others were cached from earlier turns.
        completion: The complete answer; None if it was stopped.
    """

    prompt_tokens: int
    prefilled_tokens: int
    completion: Completion | None


@dataclass(frozen=True)
class ContextUsage:
    """The use of the context.

    Attributes:
        prompt_tokens: Tokens of the conversation, including the next message.
        context_length: Maximum tokens, including the answer; None if the model does not state it.
        answer_tokens: Minimum tokens that should be left for the answer.
    """

    prompt_tokens: int
    context_length: int | None
    answer_tokens: int

    @property
    def left(self) -> int | None:
        """Tokens left for the answer; negative if the conversation itself does not fit."""
        return None if self.context_length is None else self.context_length - self.prompt_tokens

    @property
    def is_tight(self) -> bool:
        """True if the answer may be cut off because the context is full."""
        return self.left is not None and self.left < self.answer_tokens


class ChatSession:
    """A conversation. Its state: the messages, the engine, and the measurements of the last turn.

    Args:
        system: The system prompt; None for the configured one.
        messages: A conversation to continue.
        reuse: Keep keys and values between turns; otherwise every turn computes the whole conversation.
    """

    def __init__(
        self,
        loaded: "LoadedModel",
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        reuse: bool = True,
    ) -> None:
        self.loaded = loaded
        self.system = loaded.config.chat.system if system is None else system
        self.thinking = loaded.config.chat.thinking
        self.messages = list(messages)
        self.reuse = reuse
        self.last: Turn | None = None
        self._engine: Engine | None = None
        self._prefilled_before = 0
        self._attempt = 0
        self._changed: dict[str, Any] = {}  # the changes by `set_generation`, to apply to the next model

    # -- turns

    def send(self, text: str) -> Completion:
        """Send a message and return the complete answer. Errors are those of `stream`."""
        for _ in self.stream(text):
            pass
        assert self.last is not None, "an answer has been recorded"  # noqa: S101
        assert self.last.completion is not None, "it was not stopped"  # noqa: S101
        return self.last.completion

    def stream(self, text: str) -> Pieces:
        """Send a message and yield the answer, piece by piece.

        Closing the iterator, or Ctrl-C, stops the answer. Its text so far stays in the conversation, marked as stopped.
        If there is no text yet, or after an error, the conversation is unchanged.

        Raises:
            UserError: the text is empty, or does not fit in the context.
            MachineError: memory ran out.
        """
        if not text.strip():
            raise UserError("the message is empty")
        yield from self._answer([*self.messages, Message("user", text)], attempt=0)

    @property
    def history(self) -> list[dict[str, str]]:
        """The conversation as messages with `role` and `content`, the system prompt first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *({"role": message.role, "content": message.content} for message in self.messages)]

    def retry(self) -> Pieces:
        """Answer the last message again, with the next seed. Errors are those of `stream`."""
        before, text = self._before_last()
        yield from self._answer([*before, Message("user", text)], attempt=self._attempt + 1)

    def edit(self, text: str) -> Pieces:
        """Replace the last message and answer it. Errors are those of `stream`."""
        before, _ = self._before_last()
        if not text.strip():
            raise UserError("the message is empty")
        yield from self._answer([*before, Message("user", text)], attempt=0)

    def undo(self) -> str:
        """Remove the last message and its answer; return the message.

        Raises:
            UserError: there is no message.
        """
        self.messages, text = self._before_last()
        return text

    @property
    def last_text(self) -> str:
        """The user's last message.

        Raises:
            UserError: there is no message.
        """
        return self._before_last()[1]

    def clear(self) -> None:
        """Remove all messages; the system prompt is kept."""
        self.messages, self.last, self._engine = [], None, None

    def _before_last(self) -> tuple[list[Message], str]:
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place].role == "user":
                return self.messages[:place], self.messages[place].content
        raise UserError("the conversation has no message yet")

    def _answer(self, messages: list[Message], *, attempt: int) -> Pieces:
        prompt, seed = self._encode(messages), self.loaded.plan.seed
        if self._engine is None or not self.reuse:
            self._engine = engine_for_chat(self.loaded)
        self._prefilled_before = self._engine.prefilled_tokens
        pieces: list[Piece] = []
        completion = None
        request = make_request(self.loaded, prompt, seed=None if seed is None else (seed + attempt) % 2**32)
        if prefill := self.loaded.config.chat.prefill:
            pieces.append(TextDelta(prefill))
            yield pieces[-1]
        try:
            with closing(stream_request(self.loaded, request, engine=self._engine)) as chunks:
                for chunk in chunks:
                    pieces += chunk.pieces
                    yield from chunk.pieces
                    completion = chunk.completion
        except (KeyboardInterrupt, GeneratorExit):
            if pieces:
                self._record(messages, pieces, len(prompt), completion, attempt=attempt)
            raise
        self._record(messages, pieces, len(prompt), completion, attempt=attempt)

    def _record(
        self, messages: list[Message], pieces: list[Piece], prompt_tokens: int, done: Completion | None, *, attempt: int
    ) -> None:
        text, reasoning = text_of(pieces), reasoning_of(pieces)
        self.messages = [*messages, Message("assistant", text, reasoning=reasoning, stopped=done is None)]
        assert self._engine is not None  # noqa: S101 (it has answered)
        self.last = Turn(prompt_tokens, self._engine.prefilled_tokens - self._prefilled_before, done)
        self._attempt = attempt

    def _encode(self, messages: Sequence[Message]) -> Prompt:
        """Encode a conversation without reasoning, as the templates of reasoning models expect."""
        sent = [{"role": message.role, "content": message.content} for message in messages]
        chat = self.loaded.config.chat.model_copy(update={"system": self.system or None, "thinking": self.thinking})
        for message in messages:  # alone: too long a conversation loses its oldest turns
            check_length(self.loaded.tokenizer, [message.content], self.loaded.context_length)
        # the tokens of a conversation are also counted after an answer, which is not to be continued
        ending: Ending | None = "turn" if sent[-1]["role"] == "assistant" else None
        return encode_prompt(self.loaded.tokenizer, sent, chat, ending=ending)

    # -- the context

    def context_usage(self, text: str = "", *, replace_last: bool = False) -> ContextUsage:
        """Return the use of the context with `text` as the next message.

        Args:
            replace_last: `text` replaces the last message.
        """
        kept = self._before_last()[0] if replace_last else self.messages
        return self._usage_of([*kept, *([Message("user", text)] if text else [])])

    def _usage_of(self, messages: Sequence[Message]) -> ContextUsage:
        context = self.loaded.context_length
        wanted = self.loaded.config.generation.max_new_tokens
        used = len(self._encode(messages)) if messages else 0
        return ContextUsage(used, context, wanted if context is None else min(wanted, context // 4))

    def drop_oldest(self, text: str = "", *, replace_last: bool = False) -> int:
        """Drop the oldest turns until `text` and its answer fit, with a quarter of the context free where possible.

        Args:
            text: The next message.
            replace_last: `text` replaces the last message, which is kept until the new one is answered.

        Returns:
            The number of dropped messages.

        Raises:
            UserError: `text` alone does not fit; the conversation is unchanged.
        """
        new = [Message("user", text)] if text else []
        rest = self._before_last()[0] if replace_last else list(self.messages)
        last = self.messages[len(rest) :]
        while rest:
            usage = self._usage_of([*rest, *new])
            if usage.left is None or usage.left >= max(usage.answer_tokens, (usage.context_length or 0) // 4):
                break
            rest = _without_oldest_turn(rest)
        usage = self._usage_of([*rest, *new])
        if usage.left is not None and usage.left <= 0:
            raise UserError(
                f"the message has {usage.prompt_tokens} tokens, the context holds {usage.context_length}",
                hint="shorten it, or use a model with a longer context",
            )
        dropped = len(self.messages) - len(rest) - len(last)
        self.messages = [*rest, *last]
        return dropped

    # -- the model

    def set_generation(self, *, seed: int | str | None = None, **values: Any) -> None:
        """Change the generation settings for later answers: `set_generation(temperature="0.8")`.

        Raises:
            UserError: an unknown key, or a value that the schema refuses.
        """
        self.loaded = with_generation(self.loaded, values, seed=seed, where="/set")
        self._changed |= values if seed is None else {**values, "seed": seed}

    def set_thinking(self, value: bool | None) -> None:
        """Turn thinking on or off for later answers; None follows the template.

        Raises:
            UserError: the chat template has no variable for it.
        """
        check_chat(self.loaded.tokenizer, self.loaded.config.chat.model_copy(update={"thinking": value}))
        self.thinking = value

    def release(self) -> "Prepared":
        """Release the model and its memory. The next call must be `use`.

        Returns:
            The prepared model, which can be loaded again.
        """
        old = self.loaded
        prepared = old.prepared
        self._engine = None
        del self.loaded, old
        _free_memory()
        return prepared

    def use(self, loaded: "LoadedModel") -> None:
        """Continue with another model. Messages and changes by `set_generation` are kept.

        Raises:
            UserError: the model does not support the changes; it is used without them.
        """
        self.loaded, self._engine = loaded, None
        changed, self._changed = self._changed, {}
        if changed:
            self.set_generation(**changed)

    def transcript(self) -> Transcript:
        """Return the conversation in its saved form."""
        plan = self.loaded.plan
        return Transcript(plan.source, plan.commit, self.system, tuple(self.messages))


def _free_memory() -> None:
    import torch

    gc.collect()  # modules refer to each other in cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _without_oldest_turn(messages: list[Message]) -> list[Message]:
    """Return the messages from the second user message on."""
    following = (place for place, message in enumerate(messages) if place and message.role == "user")
    return messages[next(following, len(messages)) :]
