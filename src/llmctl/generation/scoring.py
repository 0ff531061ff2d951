"""Scores of texts: log-probabilities of tokens, perplexity, and a ranking of choices."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import TYPE_CHECKING, Literal

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.engine import Engine, engine_for_chat
from llmctl.generation.image_input import ImageSource, count_images, with_images
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.prompt import Messages, Prompt, encode_prompt, uses_template
from llmctl.generation.sequence_logprobs import sequence_logprobs
from llmctl.generation.teacher_forcing import forced_logprobs
from llmctl.model.vocabulary import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmctl.loading.model import LoadedModel

By = Literal["sum", "mean", "byte"]


@dataclass(frozen=True)
class Score:
    """The score of a text. Logarithms are natural.

    Attributes:
        logprobs: The scored tokens, each conditioned on all earlier tokens of its window.
        context_token_count: Tokens before the first scored one: the prompt, the beginning-of-sequence token, or the
            first token of the text, which has nothing to be conditioned on.
        window_count: Number of windows; 1 if the text fits in the context.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...]
    context_token_count: int
    window_count: int = 1

    @property
    def total(self) -> float:
        """The sum of the log-probabilities."""
        return sum(scored.logprob for scored in self.logprobs)

    @property
    def mean(self) -> float | None:
        """The log-probability per token; None if no token was scored."""
        return self.total / len(self.logprobs) if self.logprobs else None

    @property
    def per_byte(self) -> float:
        """The log-probability per byte of UTF-8: comparable between texts that are tokenised differently."""
        return self.total / len(self.text.encode())

    def by(self, measure: By) -> float:
        """Return the score by which choices are ranked."""
        if measure == "byte":
            return self.per_byte
        return self.total if measure == "sum" or self.mean is None else self.mean

    @property
    def bits_per_byte(self) -> float:
        """The negative log2-probability per byte: the rate of a compressor that uses this model."""
        return -self.per_byte / log(2)

    @property
    def perplexity(self) -> float | None:
        """exp(-mean); None if no token was scored."""
        return None if self.mean is None else exp(min(-self.mean, 700.0))


@dataclass(frozen=True)
class RankedChoice:
    """One of several ranked answers.

    Attributes:
        share: Its probability among the choices, from the sums of log-probabilities; all shares add up to 1.
    """

    score: Score
    share: float


def score(
    loaded: "LoadedModel",
    text: str,
    *,
    prompt: "str | Messages | None" = None,
    images: Sequence[ImageSource] = (),
    chat: ChatSection | None = None,
    top: int = 0,
    window: int | None = None,
    stride: int | None = None,
) -> Score:
    """Score a text.

    Args:
        text: Scored literally. If the chat template is applied to the prompt, control tokens in the text are encoded
            as text, like those in the prompt.
        prompt: The text before it, which is not scored. `encode_after` describes where the prompt ends.
        images: Images before the prompt, for models that take them. The text must then fit in the context.
        chat: Replaces the configuration's chat section.
        top: Number of top tokens to record at each position.
        window: Maximum tokens of one pass; by default, the context.
        stride: Tokens by which the window moves; by default, half a window. A text longer than a window is scored as
            in transformers' guide on perplexity: each window scores only the tokens that earlier ones did not.

    Raises:
        UserError: the text or the prompt is empty, window and stride do not fit, or an image cannot be used.
    """
    if images and prompt is None:
        raise UserError("images belong to a prompt", hint='prompt="What is in the picture?"')
    given = None if prompt is None else with_images(prompt, images)
    return next(score_each(loaded, [(given, text)], chat=chat, top=top, window=window, stride=stride))


def score_each(
    loaded: "LoadedModel",
    pairs: "Iterable[tuple[str | Messages | None, str]]",
    *,
    chat: ChatSection | None = None,
    top: int = 0,
    window: int | None = None,
    stride: int | None = None,
) -> Iterator[Score]:
    """Yield the score of each pair of a prompt (or None) and a text. Consecutive equal prompts are computed once.

    The images of prompts are decoded pictures, as `with_images` returns them.
    """
    windows = make_windows(loaded.context_length, window, stride)
    before: str | Messages | None = None
    kept = ConversationCache()
    engine: Engine | None = None
    for prompt, text in pairs:
        if prompt is not None and count_images(prompt):
            engine = engine or engine_for_chat(loaded)
            yield _score_after_images(loaded, text, prompt, chat, top, engine)
            continue
        if prompt is None or prompt != before:
            kept = ConversationCache()
        before = prompt
        yield _score(loaded, text, prompt, chat, top, windows, kept)


def rank(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    choices: Sequence[str],
    *,
    images: Sequence[ImageSource] = (),
    chat: ChatSection | None = None,
    by: By = "sum",
    top: int = 0,
) -> tuple[RankedChoice, ...]:
    """Rank answers to one prompt, most likely first. The prompt is computed once.

    Args:
        choices: At least two.
        images: Images before the prompt, for models that take them.
        chat: Replaces the configuration's chat section.
        by: The sum of an answer's log-probabilities (favours short answers), the mean per token, or the sum per byte.
        top: Number of top tokens to record at each position.

    Raises:
        UserError: there are fewer than two choices, or one is empty or repeated.
    """
    if len(set(choices)) < max(len(choices), 2):
        raise UserError("ranking needs at least two choices, all different", hint="--choices yes,no")
    given = with_images(prompt, images)
    scores = list(score_each(loaded, [(given, choice) for choice in choices], chat=chat, top=top))
    best = max(s.total for s in scores)
    mass = sum(exp(s.total - best) for s in scores)
    ranked = [RankedChoice(s, exp(s.total - best - log(mass))) for s in scores]
    return tuple(sorted(ranked, key=lambda choice: choice.score.by(by), reverse=True))


def encode_after(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: "str | Messages",
    text: str,
    chat: ChatSection,
    *,
    processor: LazyImageProcessor | None = None,
) -> tuple[Prompt, int]:
    """Return a prompt followed by a text, and the index of the first token of the text.

    With a chat template, the prompt ends where the assistant's turn begins, and the text is tokenised separately, as
    the model would write it there. A raw prompt and its text are tokenised together, and a token can span the end of
    the prompt. The prompt is then the common prefix of both tokenisations, with and without the text. After images, a
    raw prompt and its text are tokenised separately, too.
    """
    alone = encode_prompt(tokenizer, prompt, chat, processor=processor)
    if alone.media or uses_template(tokenizer, chat, prompt):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return alone.followed_by(ids), len(alone)
    both = encode_prompt(tokenizer, f"{prompt}{text}", chat)
    return both, max(alone.common(both), 1)


@dataclass(frozen=True)
class Windows:
    """Overlapping windows over a long text: `size` tokens each, one every `stride` tokens."""

    size: int | None
    stride: int

    def cut(self, length: int, start: int) -> Iterator[tuple[int, int, int]]:
        """Yield windows as (begin, first scored, end). Every position from `start` on is scored once."""
        if self.size is None or length <= self.size:
            yield 0, start, length
            return
        for begin in range(0, length, self.stride):
            end = min(begin + self.size, length)
            if start < end:
                yield begin, start, end
                start = end
            if end == length:
                return


def make_windows(context: int | None, size: int | None, stride: int | None) -> Windows:
    """Return the windows for a context of `context` tokens. None selects the default size or stride.

    Raises:
        UserError: the sizes do not fit.
    """
    if size is not None and (size < 2 or (context is not None and size > context)):
        limit = "" if context is None else f" and at most the context, {context}"
        raise UserError(f"a window must be at least 2 tokens{limit}; it is {size}")
    size = size or context
    if stride is not None and (stride < 1 or (size is not None and stride >= size)):
        raise UserError(f"the stride must be at least 1 and less than the window, {size}; it is {stride}")
    return Windows(size, stride or max((size or 2) // 2, 1))


def _score(
    loaded: "LoadedModel",
    text: str,
    prompt: "str | Messages | None",
    chat: ChatSection | None,
    top: int,
    windows: Windows,
    kept: ConversationCache,
) -> Score:
    _check_text(text)
    if prompt is None:
        encoded, start = encode_prompt(loaded.tokenizer, text, ChatSection(raw=True)), 1
    else:
        encoded, start = encode_after(
            loaded.tokenizer, prompt, text, chat or loaded.config.chat, processor=LazyImageProcessor(loaded)
        )
    check_ids(encoded.ids, loaded.tokenizer, loaded.info.embedding_rows)
    logprobs: list[TokenLogprob] = []
    count = 0
    for begin, first, end in windows.cut(len(encoded), start):
        cache = kept if begin == 0 else ConversationCache()
        part = Prompt(encoded.ids[begin:end], encoded.media)
        logprobs += sequence_logprobs(loaded, part, start=first - begin, top=top, kept=cache)
        count += 1
    return Score(text, tuple(logprobs), start, count)


def _score_after_images(
    loaded: "LoadedModel", text: str, prompt: "str | Messages", chat: ChatSection | None, top: int, engine: Engine
) -> Score:
    _check_text(text)
    processor = LazyImageProcessor(loaded)
    encoded, start = encode_after(loaded.tokenizer, prompt, text, chat or loaded.config.chat, processor=processor)
    context, ids = replace(encoded, ids=encoded.ids[:start]), encoded.ids[start:]
    check_ids(ids, loaded.tokenizer, loaded.info.embedding_rows)
    return Score(text, forced_logprobs(loaded, context, ids, top=top, engine=engine), start)


def _check_text(text: str) -> None:
    if not text:
        raise UserError("the text to score is empty", hint="give --text TEXT, --file FILE, or text on standard input")
