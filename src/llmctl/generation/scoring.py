"""Scores of texts: log-probabilities of tokens, perplexity, and a ranking of choices."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.image_input import count_images
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.logprobs import TokenLogprob, token_logprobs
from llmctl.generation.prompt import Messages, Prompt, encode_prompt, uses_template
from llmctl.model.vocabulary import check_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from llmctl.loading.model import LoadedModel

# The logits of a long text are computed in portions: maximum elements (128 MiB in float32) and tokens of one portion.
_PORTION_ELEMENTS = 2**25
_PORTION_TOKENS = 2048
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
        chat: Replaces the configuration's chat section.
        top: Number of top tokens to record at each position.
        window: Maximum tokens of one pass; by default, the context.
        stride: Tokens by which the window moves; by default, half a window. A text longer than a window is scored as
            in transformers' guide on perplexity: each window scores only the tokens that earlier ones did not.

    Raises:
        UserError: the text or the prompt is empty, or window and stride do not fit.
    """
    return next(score_each(loaded, [(prompt, text)], chat=chat, top=top, window=window, stride=stride))


def score_each(
    loaded: "LoadedModel",
    pairs: "Iterable[tuple[str | Messages | None, str]]",
    *,
    chat: ChatSection | None = None,
    top: int = 0,
    window: int | None = None,
    stride: int | None = None,
) -> Iterator[Score]:
    """Yield the score of each pair of a prompt (or None) and a text. Consecutive equal prompts are computed once."""
    windows = make_windows(loaded.context_length, window, stride)
    before: str | Messages | None = None
    kept = ConversationCache()
    for prompt, text in pairs:
        if prompt is None or prompt != before:
            kept = ConversationCache()
        before = prompt
        yield _score(loaded, text, prompt, chat, top, windows, kept)


def rank(
    loaded: "LoadedModel",
    prompt: "str | Messages",
    choices: Sequence[str],
    *,
    chat: ChatSection | None = None,
    by: By = "sum",
    top: int = 0,
) -> tuple[RankedChoice, ...]:
    """Rank answers to one prompt, most likely first. The prompt is computed once.

    Args:
        choices: At least two.
        chat: Replaces the configuration's chat section.
        by: The sum of an answer's log-probabilities (favours short answers), the mean per token, or the sum per byte.
        top: Number of top tokens to record at each position.

    Raises:
        UserError: there are fewer than two choices, or one is empty or repeated.
    """
    if len(set(choices)) < max(len(choices), 2):
        raise UserError("ranking needs at least two choices, all different", hint="--choices yes,no")
    scores = list(score_each(loaded, [(prompt, choice) for choice in choices], chat=chat, top=top))
    best = max(s.total for s in scores)
    mass = sum(exp(s.total - best) for s in scores)
    ranked = [RankedChoice(s, exp(s.total - best - log(mass))) for s in scores]
    return tuple(sorted(ranked, key=lambda choice: choice.score.by(by), reverse=True))


def sequence_logprobs(
    loaded: "LoadedModel", prompt: Prompt, *, start: int, top: int = 0, kept: ConversationCache | None = None
) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of the tokens from `start` on, each conditioned on all earlier tokens.

    Args:
        prompt: The whole sequence, which must fit in the context.
        start: At least 1.
        top: Number of top tokens to record at each position.
        kept: The cache of an earlier call; the common prefix is not computed again.
    """
    logprobs: list[TokenLogprob] = []
    for rows in _logits(loaded.model, prompt, start, kept or ConversationCache()):
        place = start + len(logprobs)
        logprobs += token_logprobs(rows, list(prompt.ids[place : place + rows.shape[0]]), top)
    return tuple(logprobs)


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
    the prompt. The prompt is then the common prefix of both tokenisations, with and without the text.
    """
    alone = encode_prompt(tokenizer, prompt, chat, processor=processor)
    if uses_template(tokenizer, chat, prompt):
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
    if not text:
        raise UserError("the text to score is empty", hint="give --text TEXT, --file FILE, or text on standard input")
    if count_images(prompt or ""):
        raise UserError("texts after images cannot be scored or ranked", hint="llmctl.generate takes images")
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


def _logits(model: Any, prompt: Prompt, start: int, kept: ConversationCache) -> "Iterator[torch.Tensor]":
    """Yield the logits that predict the tokens from `start` on, in portions of shape [T, V].

    The tokens before `start` are computed separately, so that an answer gets the same score whether or not its prompt
    was cached.
    """
    ids = list(prompt.ids)
    cache = kept.arguments_for(model, Prompt(prompt.ids[:start], prompt.media))
    known, last = start - kept.prefilled_tokens, len(ids) - 1
    if not cache:  # the cache of this model cannot be kept: compute everything at once
        if last >= start:
            yield _forward(model, ids[:last], last, use_cache=False)[start - 1 :]
        return
    size = _portion(model)
    minimal_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for begin in range(known, start - 1, size):
        end = min(begin + size, start - 1)
        _forward(model, ids[begin:end], end, use_cache=True, **minimal_logits, **cache)
    for begin in range(start - 1, last, size):
        end = min(begin + size, last)
        yield _forward(model, ids[begin:end], end, use_cache=True, **cache)
    kept.keep(prompt)


def _forward(model: Any, ids: list[int], seen: int, **arguments: Any) -> "torch.Tensor":
    """Return the logits [T, V] of one pass over `ids`, after which the context has `seen` tokens."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([ids], dtype=torch.long, device=model.device)
        mask = torch.ones((1, seen), dtype=torch.long, device=model.device)
        logits: torch.Tensor = model(input_ids=inputs, attention_mask=mask, **arguments).logits[0]
        return logits


def _portion(model: Any) -> int:
    """Return the maximum tokens of one portion of logits."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(16, min(_PORTION_TOKENS, _PORTION_ELEMENTS // vocabulary))
