"""A conversation with a loaded model, whose engine keeps keys and values between turns."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmctl.errors import ConfigError, UserError
from llmctl.generation.chat.attachments import Attachment, attach
from llmctl.generation.chat.repetition import LoopGuard
from llmctl.generation.chat.transcript import Message, Transcript
from llmctl.generation.chat.turn import Context, ContextUsage, Task, Turn
from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine, engine_for_chat
from llmctl.generation.image_input import ImageSource
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.overrides import with_generation
from llmctl.generation.pieces import Piece, TextDelta, reasoning_of, text_of
from llmctl.generation.prompt import Ending, Prompt, check_chat, encode_prompt
from llmctl.generation.prompt_length import check_length
from llmctl.generation.request import Request, make_request
from llmctl.generation.stream import stream_request
from llmctl.loading.device_memory import release_memory

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared


Pieces = Generator[Piece, None, None]
Images = Sequence[ImageSource | Attachment]


class ChatSession:
    """A conversation. Its state: the messages, the engine, and the measurements of the last turn.

    Without an explicit `generation.max_new_tokens`, an answer may fill the rest of the context.

    Args:
        system: The system prompt; None for the configured one.
        messages: A conversation to continue.
        reuse: Keep keys and values between turns; otherwise every turn computes the whole conversation.
        stops_loops: Stop an answer that repeats itself, as if its iterator had been closed.
    """

    def __init__(
        self,
        loaded: "LoadedModel",
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        reuse: bool = True,
        stops_loops: bool = False,
    ) -> None:
        self.loaded = loaded
        self.stops_loops = stops_loops
        self.system = loaded.config.chat.system if system is None else system
        self.thinking = loaded.config.chat.thinking
        self.messages = list(messages)
        self.reuse = reuse
        self.last: Turn | None = None
        self._engine: Engine | None = None
        self._prefilled_before = 0
        self._attempt = 0
        self._answered: Context | None = None  # the context after the last turn
        self._cut: Prompt | None = None  # the tokens of the last answer, after its prompt, if a limit ended it
        self._changed: dict[str, Any] = {}  # the changes by `set_generation`, to apply to the next model

    # -- turns

    def send(self, text: str, *, images: Images = ()) -> Completion:
        """Send a message and return the complete answer. Errors are those of `stream`."""
        for _ in self.stream(text, images=images):
            pass
        assert self.last is not None, "an answer has been recorded"  # noqa: S101
        assert self.last.completion is not None, "it was not stopped"  # noqa: S101
        return self.last.completion

    def stream(self, text: str, *, images: Images = ()) -> Pieces:
        """Send a message and yield the answer, piece by piece.

        Closing the iterator, or Ctrl-C, stops the answer. Its text so far stays in the conversation, marked as stopped.
        If there is no text yet, or after an error, the conversation is unchanged.

        Args:
            images: Images before the text: paths, contents of files, or PIL images.

        Raises:
            UserError: the text is empty, or does not fit in the context, or an image cannot be used.
            MachineError: memory ran out.
        """
        if not text.strip():
            raise UserError("the message is empty")
        yield from self._answer([*self.messages, Message("user", text, images=attach(images))], attempt=0)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The conversation as messages with `role` and `content`, the system prompt first.

        The content of a message with images is a list of parts.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *(message.as_dict() for message in self.messages)]

    def retry(self) -> Pieces:
        """Answer the last message again, with the next seed. Errors are those of `stream`."""
        before, last = self._before_last()
        yield from self._answer([*before, last], attempt=self._attempt + 1)

    def edit(self, text: str) -> Pieces:
        """Replace the text of the last message and answer it. Errors are those of `stream`."""
        before, last = self._before_last()
        if not text.strip():
            raise UserError("the message is empty")
        yield from self._answer([*before, replace(last, content=text)], attempt=0)

    def continue_answer(self) -> Pieces:
        """Continue the last answer, which a limit or Ctrl-C has ended, and yield the new pieces.

        An answer that ended at its limit continues after its last token. Any other is read again as text. With a
        configured seed, the next seed is used.

        Raises:
            UserError: there is no answer, it is complete, or it cannot be continued.
        """
        if not self.messages or self.messages[-1].role != "assistant":
            raise UserError("there is no answer to continue", hint="send a message")
        is_last = self.last is not None and self._answered == self._context()
        completion = self.last.completion if is_last and self.last is not None else None
        if completion is not None and completion.finish_reason != "length":
            raise UserError("the answer is complete", hint="/retry answers again")
        if self.loaded.config.structure.model_dump(exclude_none=True):
            raise UserError("an answer with a structure cannot be continued", hint="raise max_new_tokens, then /retry")
        prompt = self._cut if is_last else None
        if prompt is None and not self.messages[-1].content.strip():
            raise UserError("the answer has no text yet that could be continued", hint="/retry answers again")
        prompt = prompt or self._encode(self.messages, continues=True)
        yield from self._take(Task(prompt, self.messages[:-1], self._attempt + 1, self.messages[-1]))

    def undo(self) -> str:
        """Remove the last message and its answer; return the message.

        Raises:
            UserError: there is no message.
        """
        self.messages, last = self._before_last()
        return last.content

    @property
    def last_text(self) -> str:
        """The user's last message.

        Raises:
            UserError: there is no message.
        """
        return self._before_last()[1].content

    def clear(self) -> None:
        """Remove all messages; the system prompt is kept."""
        self.messages, self.last, self._engine = [], None, None

    def _before_last(self) -> tuple[list[Message], Message]:
        """Return the last message of the user, and the messages before it."""
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place].role == "user":
                return self.messages[:place], self.messages[place]
        raise UserError("the conversation has no message yet")

    def _answer(self, messages: list[Message], *, attempt: int) -> Pieces:
        yield from self._take(Task(self._encode(messages), messages, attempt))

    def _take(self, task: Task) -> Pieces:
        """Yield the pieces of an answer, and record it."""
        if self._engine is None or not self.reuse:
            self._engine = engine_for_chat(self.loaded)
        self._prefilled_before = self._engine.prefilled_tokens
        request = self._request(self._engine, task)
        pieces: list[Piece] = []
        completion, guard, is_loop = None, LoopGuard(), False
        if (prefill := self.loaded.config.chat.prefill) and task.continued is None:
            pieces.append(TextDelta(prefill))
            yield pieces[-1]
        try:
            with closing(stream_request(self.loaded, request, engine=self._engine)) as chunks:
                for chunk in chunks:
                    pieces += chunk.pieces
                    yield from chunk.pieces
                    completion = chunk.completion
                    is_loop = self.stops_loops and guard.add(chunk.text or chunk.reasoning) and completion is None
                    if is_loop:
                        break
        except (KeyboardInterrupt, GeneratorExit):
            if pieces:
                self._record(task, request, pieces, completion)
            raise
        self._record(task, request, pieces, completion, is_loop=is_loop)

    def _request(self, engine: Engine, task: Task) -> Request:
        """Return the request of a turn. By default, the answer may fill the context, as far as the memory allows."""
        prompt, seed, limit = task.prompt, self.loaded.plan.seed, self._default_limit()
        seed = None if seed is None else (seed + task.attempt) % 2**32
        request = make_request(self.loaded, prompt, seed=seed, max_new_tokens=limit)
        room = engine.token_limit(request, now=True)
        if limit is None or room is None or not len(prompt) < room < len(prompt) + request.budget:
            return request
        request = make_request(self.loaded, prompt, seed=request.seed, max_new_tokens=room - len(prompt))
        return replace(request, fills_context=True)

    @property
    def fills_context(self) -> bool:
        """True if only the context limits an answer."""
        return self._default_limit() is not None

    def _default_limit(self) -> int | None:
        """Return the limit of an answer without a configured one; None for that of the schema.

        A static cache reserves its memory before the answer, and a draft is only used within its own context.
        """
        loaded = self.loaded
        reserves = {"compile_config", "cache_implementation"} & loaded.plan.generation_kwargs.keys()
        if "max_new_tokens" in loaded.config.generation.model_fields_set or reserves or loaded.draft is not None:
            return None
        return loaded.context_length

    def _record(
        self, task: Task, request: Request, pieces: list[Piece], done: Completion | None, *, is_loop: bool = False
    ) -> None:
        text, reasoning, before = text_of(pieces), reasoning_of(pieces), task.continued
        if before is not None:
            text, reasoning = before.content + text, before.reasoning + reasoning
        self.messages = [*task.messages, Message("assistant", text, reasoning=reasoning, stopped=done is None)]
        assert self._engine is not None  # noqa: S101 (it has answered)
        prefilled = self._engine.prefilled_tokens - self._prefilled_before
        self.last = Turn(len(request.prompt), prefilled, done, request.seed, is_loop)
        self._attempt, self._answered, self._cut = task.attempt, self._context(), None
        if done is not None and done.finish_reason == "length":
            self._cut = self._continued(request.prompt, done.token_ids)

    def _continued(self, prompt: Prompt, token_ids: Sequence[int]) -> Prompt:
        """Return the prompt that continues an answer after its last token."""
        text = str(self.loaded.tokenizer.decode(list(token_ids)))
        return replace(prompt.followed_by(token_ids), is_open=True, prefill=prompt.prefill + text)

    def _context(self) -> Context:
        return Context(tuple(self.messages), self.system, self.thinking, self.loaded.tokenizer)

    def _encode(self, messages: Sequence[Message], *, continues: bool = False) -> Prompt:
        """Encode a conversation without reasoning, as the templates of reasoning models expect.

        Args:
            continues: The final message is an answer to continue.
        """
        sent = [message.as_dict() for message in messages]
        chat = self.loaded.config.chat.model_copy(update={"system": self.system or None, "thinking": self.thinking})
        for message in messages:  # alone: too long a conversation loses its oldest turns
            check_length(self.loaded.tokenizer, [message.content], self.loaded.context_length)
        # the tokens of a conversation are also counted after an answer, which is not to be continued
        ending: Ending | None = "turn" if sent[-1]["role"] == "assistant" and not continues else None
        return encode_prompt(
            self.loaded.tokenizer, sent, chat, ending=ending, processor=LazyImageProcessor(self.loaded)
        )

    # -- the context

    def context_usage(self, text: str = "", *, images: Images = (), replace_last: bool = False) -> ContextUsage:
        """Return the use of the context with `text` and `images` as the next message.

        Args:
            replace_last: `text` replaces that of the last message.
        """
        kept = self._before_last()[0] if replace_last else self.messages
        return self._usage_of([*kept, *self._next(text, images, replace_last=replace_last)])

    def _next(self, text: str, images: Images, *, replace_last: bool) -> list[Message]:
        """Return the next message; none without a text."""
        if not text:
            return []
        if replace_last:
            return [replace(self._before_last()[1], content=text)]
        return [Message("user", text, images=attach(images))]

    def _usage_of(self, messages: Sequence[Message]) -> ContextUsage:
        context = self.loaded.context_length
        wanted = self.loaded.config.generation.max_new_tokens
        used = len(self._encode(messages)) if messages else 0
        return ContextUsage(used, context, wanted if context is None else min(wanted, context // 4))

    def drop_oldest(
        self, text: str = "", *, images: Images = (), replace_last: bool = False, continues: bool = False
    ) -> int:
        """Drop the oldest turns until `text` and its answer fit, with a quarter of the context free where possible.

        Args:
            text: The next message.
            images: Its images.
            replace_last: `text` replaces that of the last message, which is kept until the new one is answered.
            continues: The last answer is to be continued; its turn is kept.

        Returns:
            The number of dropped messages.

        Raises:
            UserError: `text` alone does not fit; the conversation is unchanged.
        """
        rest = self._before_last()[0] if replace_last or continues else list(self.messages)
        last = self.messages[len(rest) :]
        new = last if continues else self._next(text, images, replace_last=replace_last)
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
        try:
            self.loaded = with_generation(self.loaded, values, seed=seed, where="/set")
        except ConfigError as error:
            raise ConfigError([replace(problem, where="/set") for problem in error.problems]) from None
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
        release_memory()
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


def _without_oldest_turn(messages: list[Message]) -> list[Message]:
    """Return the messages from the second user message on."""
    following = (place for place, message in enumerate(messages) if place and message.role == "user")
    return messages[next(following, len(messages)) :]
