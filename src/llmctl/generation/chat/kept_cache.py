"""Keys and values of earlier turns, kept so that the next turn computes only what is new."""

from typing import TYPE_CHECKING, Any

from llmctl.loading.transformers_compat import cache_argument, supports_dynamic_cache

if TYPE_CHECKING:
    from llmctl.generation.engine import Engine
    from llmctl.loading.model import LoadedModel


class KeptCache:
    """The KV cache of one conversation. Its state: the cache, and the ids whose keys and values lie in it.

    Where the engine answers, it is the engine that keeps them.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._engine: Engine | None = None
        self._ids: list[int] = []
        self.prefilled_tokens = 0

    def engine_for(self, loaded: "LoadedModel") -> "Engine":
        """The engine of this conversation."""
        from llmctl.generation.engine import Engine, engine_size

        if self._engine is None or self._engine.loaded is not loaded:
            self.forget()
            self._engine = Engine(loaded, engine_size(loaded, sequences=1))
        return self._engine

    def arguments_for(self, model: Any, ids: list[int]) -> dict[str, Any]:
        """What `model.generate` gets so that it computes only the ids that are not kept yet.

        The kept cache is cut back to the beginning that both have in common. At least one id is always left to compute,
        since its logits choose the next token. Where the cache cannot be cut (a sliding window that was passed has
        thrown its past away) a fresh one begins.
        """
        kept, cache, self._ids = self._ids, self._cache, []
        self._cache = self._engine = None  # if this turn fails half-way, nothing of it is trusted
        self.prefilled_tokens = len(ids)
        if not _can_be_kept(model):
            return {}
        common = 0
        for ours, theirs in zip(kept, ids[:-1], strict=False):
            if ours != theirs:
                break
            common += 1
        if cache is None or not common or not _crop(cache, len(kept) - common):
            cache, common = _new_cache(model), 0
        if _is_all_linear(cache):
            return {}
        self._cache = cache
        self.prefilled_tokens = len(ids) - common
        return {cache_argument(): cache}

    def keep(self, ids: list[int]) -> None:
        """Generation ended: `ids` are the prompt and the answer. The last one was chosen but never computed."""
        self._ids = ids[:-1]
        if self._cache is not None and self._cache.get_seq_length() != len(self._ids):
            self.forget()

    def pass_over(self, ids: list[int]) -> None:
        """A turn whose cache cannot be kept: it computes all of `ids`, and the next one begins anew."""
        self.forget()
        self.prefilled_tokens = len(ids)

    def forget(self) -> None:
        """Begin anew with the next turn."""
        self._cache, self._engine, self._ids = None, None, []


def _can_be_kept(model: Any) -> bool:
    """Whether the model keeps its past in transformers' own cache classes; a few have one of their own."""
    return supports_dynamic_cache(model) and not model.config.is_encoder_decoder


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _is_all_linear(cache: Any) -> bool:
    """Whether no layer counts tokens: `generate` then feeds the whole prompt again, on top of what is kept."""
    linear: list[bool] = getattr(cache, "is_linear", [])
    return bool(linear) and all(linear)


def _crop(cache: Any, tokens: int) -> bool:
    """Take the last `tokens` out of the cache; False where it cannot be done and the cache is of no more use."""
    if not tokens:
        return True
    if not getattr(cache, "is_croppable", True):
        return False
    before = cache.get_seq_length()
    try:
        cache.crop(-tokens)
    except (RuntimeError, ValueError):  # a sliding window that has been passed
        return False
    return bool(cache.get_seq_length() == before - tokens)
