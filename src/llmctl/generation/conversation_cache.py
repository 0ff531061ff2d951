"""A KV cache kept between calls, so that the next call computes only the tokens after the common prefix."""

from typing import Any

from llmctl.generation.prompt import Prompt
from llmctl.transformers_compat import cache_argument, supports_dynamic_cache


class ConversationCache:
    """The KV cache of one conversation. Its state: transformers' cache, and the prompt whose tokens it holds."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._known = Prompt(())
        self.prefilled_tokens = 0

    def arguments_for(self, model: Any, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments with which `model.generate` computes only the tokens that are not cached.

        The cache is cropped to the common prefix. At least one token is always left to compute, since its logits
        determine the next token. A cache that cannot be cropped is replaced by a new one; an example is a sliding
        window that has already dropped earlier tokens.
        """
        known, cache, self._known = self._known, self._cache, Prompt(())
        self._cache = None  # if this call fails half-way, its cache is not reused
        self.prefilled_tokens = len(prompt)
        if not _can_be_kept(model):
            return {}
        common = min(known.common(prompt), len(prompt) - 1)
        if cache is None or not common or not _crop(cache, len(known) - common):
            cache, common = _new_cache(model), 0
        if _is_all_linear(cache):
            return {}
        self._cache = cache
        self.prefilled_tokens = len(prompt) - common
        return {cache_argument(model): cache}

    def keep(self, prompt: Prompt) -> None:
        """Record that the cache now holds `prompt`, answer included, except its last token, which was not computed."""
        self._known = Prompt(prompt.ids[:-1], prompt.media)
        if self._cache is not None and self._cache.get_seq_length() != len(self._known):
            self.forget()

    def forget(self) -> None:
        """Drop the cache."""
        self._cache, self._known = None, Prompt(())


def _can_be_kept(model: Any) -> bool:
    """Return True if the model uses transformers' cache classes; a few models have others."""
    return supports_dynamic_cache(model) and not model.config.is_encoder_decoder


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _is_all_linear(cache: Any) -> bool:
    """Return True if no layer counts tokens: `generate` would then add the whole prompt to the cached state again."""
    linear: list[bool] = getattr(cache, "is_linear", [])
    return bool(linear) and all(linear)


def _crop(cache: Any, tokens: int) -> bool:
    """Remove the last `tokens` from the cache. Return False if that is impossible, so that the cache is unusable."""
    if not tokens:
        return True
    if not getattr(cache, "is_croppable", True):
        return False
    before = cache.get_seq_length()
    try:
        cache.crop(-tokens)
    except (RuntimeError, ValueError):  # a sliding window that has dropped earlier tokens
        return False
    return bool(cache.get_seq_length() == before - tokens)
