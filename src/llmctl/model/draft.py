"""The draft model as a configuration of its own, derived from the one that names it."""

from collections.abc import Mapping
from typing import Any

from llmctl.config import Config, Settings


def draft_settings(settings: Settings) -> Settings:
    """Return the settings of the draft model, with the origin of its id."""
    return Settings(draft_config(settings.config), {"model.id": settings.origin("draft.id")})


def draft_config(config: Config) -> Config:
    """Return the configuration of the draft model: dtype and quantisation are the model's unless `draft` sets them.

    Trust in the model's own code does not extend to the draft's. A device map by modules is the model's alone.
    """
    draft = config.draft
    set_by_user = config.model_dump(exclude_unset=True)
    load, quantization = dict(set_by_user.get("load", {})), dict(set_by_user.get("quantization", {}))
    load.pop("attn_implementation", None)
    load.pop("images", None)
    if draft.dtype is not None:
        load["dtype"] = draft.dtype
    if isinstance(load.get("device_map"), Mapping):
        del load["device_map"]
    if draft.bits is not None:
        quantization["bits"] = draft.bits or None
    tokenizer: dict[str, Any] = {"source": config.tokenizer.source}
    if config.tokenizer.fix_mistral_regex is False:  # true may not fit the draft, which then follows the default
        tokenizer["fix_mistral_regex"] = False
    values: dict[str, Any] = {
        "model": {"id": draft.id, "revision": draft.revision},
        "load": load,
        "tokenizer": tokenizer,
        "quantization": quantization,
        "generation": {"max_new_tokens": config.generation.max_new_tokens, "do_sample": False},
        "seed": config.seed,
        "deterministic": config.deterministic,
    }
    return Config.model_validate(values)
