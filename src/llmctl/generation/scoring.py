"""How likely a model thinks a text: log-probabilities token by token, perplexity, and choices against each other."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any, Literal

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.logprobs import TokenLogprob, token_logprobs
from llmctl.generation.prompt import Messages, Prompt, encode_prompt, uses_template

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from llmctl.loading.model import LoadedModel

# Logits of a long text come in portions of at most this many elements (128 MiB in float32) and this many tokens.
_PORTION_ELEMENTS = 2**25
_PORTION_TOKENS = 2048
By = Literal["sum", "mean", "byte"]


@dataclass(frozen=True)
class Score:
    """A text as a model sees it. Logarithms are natural.

    Attributes:
        text: The text that was scored.
        logprobs: Its tokens, each given everything before it in its window.
        context_token_count: Tokens before the first scored one: the prompt, or the beginning-of-sequence token, or the
            text's own first token, which has nothing before it to be likely after.
        window_count: How many windows the text took: 1 where it fits in the context.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...]
    context_token_count: int
    window_count: int = 1

    @property
    def total(self) -> float:
        """The log-probability of the scored tokens together."""
        return sum(scored.logprob for scored in self.logprobs)

    @property
    def mean(self) -> float | None:
        """Per token; None where no token was scored."""
        return self.total / len(self.logprobs) if self.logprobs else None

    @property
    def per_byte(self) -> float:
        """Per byte of the text in UTF-8: comparable between texts that are cut into tokens differently."""
        return self.total / len(self.text.encode())

    def by(self, measure: By) -> float:
        """What choices are ranked by."""
        if measure == "byte":
            return self.per_byte
        return self.total if measure == "sum" or self.mean is None else self.mean

    @property
    def bits_per_byte(self) -> float:
        """What a compressor by this model would need."""
        return -self.per_byte / log(2)

    @property
    def perplexity(self) -> float | None:
        """exp(-mean); None where no token was scored."""
        return None if self.mean is None else exp(min(-self.mean, 700.0))


@dataclass(frozen=True)
class RankedChoice:
    """One of several answers.

    Attributes:
        score: The answer and its log-probabilities.
        share: Its probability against the others, by the sums of log-probabilities; all of them add up to 1.
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
    """How likely the model thinks a text.

    Args:
        loaded: What `load` returned.
        text: The text, taken as it is. After a prompt that goes through the chat template, control tokens in it stay
            text, as they do in the prompt.
        prompt: What comes before it; it is not scored. See `encode_after` for the border between the two.
        chat: Instead of the configuration's chat section.
        top: How many of the likeliest tokens to note at each place.
        window: Most tokens that the model sees at a time; by default its context.
        stride: By how many tokens the window moves on; half a window by default. A longer text is scored as in
            transformers' guide on perplexity: each window scores only what the ones before it have not.

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
    """`score` for pairs of a prompt (or None) and a text. Where the same prompt follows itself it is computed once."""
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
    """Answers to one prompt, the likeliest first. The prompt is computed once.

    Args:
        loaded: What `load` returned.
        prompt: What they answer.
        choices: At least two of them.
        chat: Instead of the configuration's chat section.
        by: The sum of an answer's log-probabilities (favours short ones), the mean per token, or the sum per byte.
        top: How many of the likeliest tokens to note at each place.

    Raises:
        UserError: there are fewer than two choices, or one is empty or there twice.
    """
    if len(set(choices)) < max(len(choices), 2):
        raise UserError("choices are to be ranked: at least two, all different", hint="--choices yes,no")
    scores = list(score_each(loaded, [(prompt, choice) for choice in choices], chat=chat, top=top))
    best = max(s.total for s in scores)
    mass = sum(exp(s.total - best) for s in scores)
    ranked = [RankedChoice(s, exp(s.total - best - log(mass))) for s in scores]
    return tuple(sorted(ranked, key=lambda choice: choice.score.by(by), reverse=True))


def sequence_logprobs(
    loaded: "LoadedModel", prompt: Prompt, *, start: int, top: int = 0, kept: ConversationCache | None = None
) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of the tokens from `start` on, each given all before it.

    Args:
        loaded: What `load` returned.
        prompt: Tokens that fit in the context together.
        start: At least 1.
        top: How many of the likeliest tokens to note at each place.
        kept: Keys and values of an earlier call; what both begin with is not computed again.
    """
    found: list[TokenLogprob] = []
    for rows in _logits(loaded.model, prompt, start, kept or ConversationCache()):
        place = start + len(found)
        found += token_logprobs(rows, list(prompt.ids[place : place + rows.shape[0]]), top)
    return tuple(found)


def encode_after(
    tokenizer: "PreTrainedTokenizerBase", prompt: "str | Messages", text: str, chat: ChatSection
) -> tuple[Prompt, int]:
    """Return a prompt with the text that follows it, and where that begins.

    Through a chat template the prompt ends where the assistant's turn begins: the text is cut into tokens by itself, as
    the model would write it there. A raw prompt and its text are one text, and a token can reach over the border: what
    the prompt alone and both together begin with is the prompt, the rest counts as the text's.
    """
    alone = encode_prompt(tokenizer, prompt, chat)
    if uses_template(tokenizer, chat, prompt):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return alone.followed_by(ids), len(alone)
    both = encode_prompt(tokenizer, f"{prompt}{text}", chat)
    return both, max(alone.common(both), 1)


@dataclass(frozen=True)
class Windows:
    """How a long text is cut: windows of `size` tokens, each beginning `stride` after the last."""

    size: int | None
    stride: int

    def cut(self, length: int, start: int) -> Iterator[tuple[int, int, int]]:
        """Windows as (begin, first scored, end). Every place from `start` on is scored once."""
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
    """Windows for a model whose context holds `context` tokens; what is None follows from that.

    Raises:
        UserError: they do not fit.
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
    if prompt is None:
        encoded, start = encode_prompt(loaded.tokenizer, text, ChatSection(raw=True)), 1
    else:
        encoded, start = encode_after(loaded.tokenizer, prompt, text, chat or loaded.config.chat)
    found: list[TokenLogprob] = []
    count = 0
    for begin, first, end in windows.cut(len(encoded), start):
        cache = kept if begin == 0 else ConversationCache()
        part = Prompt(encoded.ids[begin:end], encoded.media)
        found += sequence_logprobs(loaded, part, start=first - begin, top=top, kept=cache)
        count += 1
    return Score(text, tuple(found), start, count)


def _logits(model: Any, prompt: Prompt, start: int, kept: ConversationCache) -> "Iterator[torch.Tensor]":
    """Logits of shape [T, V] for the places `start` and on, in portions. The last token's own are not computed.

    What comes before the first scored place is computed apart from the rest, so that an answer scores the same whether
    or not its prompt was kept from another.
    """
    ids = list(prompt.ids)
    more = kept.arguments_for(model, Prompt(prompt.ids[:start], prompt.media))
    known, last = start - kept.prefilled_tokens, len(ids) - 1
    if not more:  # a model without a cache that can be kept: all at once
        if last >= start:
            yield _forward(model, ids[:last], last, use_cache=False)[start - 1 :]
        return
    size = _portion(model)
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for begin in range(known, start - 1, size):
        end = min(begin + size, start - 1)
        _forward(model, ids[begin:end], end, use_cache=True, **few, **more)
    for begin in range(start - 1, last, size):
        end = min(begin + size, last)
        yield _forward(model, ids[begin:end], end, use_cache=True, **more)
    kept.keep(prompt)


def _forward(model: Any, ids: list[int], seen: int, **more: Any) -> "torch.Tensor":
    """Logits of shape [T, V] of one pass over `ids`, after which `seen` tokens have been seen."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([ids], dtype=torch.long, device=model.device)
        mask = torch.ones((1, seen), dtype=torch.long, device=model.device)
        logits: torch.Tensor = model(input_ids=inputs, attention_mask=mask, **more).logits[0]
        return logits


def _portion(model: Any) -> int:
    """How many tokens at a time."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(16, min(_PORTION_TOKENS, _PORTION_ELEMENTS // vocabulary))
