"""Other generation settings for a model that is loaded: of one row of a batch, of the rest of a conversation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from llmctl.config import Config, settings_from_mapping
from llmctl.model.tokenizer import end_tokens
from llmctl.plan.decoding import decide_faster
from llmctl.plan.generation import decide_generation

if TYPE_CHECKING:
    from llmctl.loading.model import PromptModel


Model = TypeVar("Model", bound="PromptModel")


def with_generation(
    loaded: Model,
    values: Mapping[str, Any],
    *,
    structure: Mapping[str, Any] | None = None,
    seed: int | str | None = None,
) -> Model:
    """The same model, answering by other settings: `with_generation(loaded, {"temperature": 0.8}, seed=7)`.

    Args:
        loaded: What `load` returned; it stays as it is.
        values: Keys of the section `generation`, over those that were asked for.
        structure: Keys of the section `structure`, instead of those that were asked for; empty for none.
        seed: Instead of the configuration's.

    Raises:
        UserError: an unknown key, or a value that the schema refuses.
    """
    document = loaded.config.model_dump(mode="json", exclude_unset=True)
    document["generation"] = {**document.get("generation", {}), **values}
    document |= {} if structure is None else {"structure": dict(structure)}
    document |= {} if seed is None else {"seed": seed}
    new: Config = settings_from_mapping(document).config
    plan = loaded.plan
    arguments, _ = decide_generation(new, loaded.info)
    faster, _ = decide_faster(new, loaded.machine, loaded.info, devices=plan.devices, model_kwargs=plan.model_kwargs)
    ends = loaded.eos_token_ids
    if "extra_eos_tokens" in values:
        stored = loaded.info.generation_config.get("eos_token_id")
        ends = tuple(end_tokens(loaded.tokenizer, stored, new.generation.extra_eos_tokens))
    plan = replace(plan, generation_kwargs=arguments | faster, seed=new.seed)
    return replace(loaded, prepared=replace(loaded.prepared, config=new, plan=plan), eos_token_ids=ends)
