"""Request overrides: generation settings for one row of a batch, one HTTP request, or the rest of a conversation."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from llmctl.config import settings_from_mapping
from llmctl.config.layers import superseded_sampling
from llmctl.config.structure import StructureSection
from llmctl.model.tokenizer import end_tokens
from llmctl.plan.decoding import decide_decoding
from llmctl.plan.generation import decide_generation
from llmctl.synonyms import renamed

if TYPE_CHECKING:
    from llmctl.loading.model import PromptModel

Model = TypeVar("Model", bound="PromptModel")
SectionT = TypeVar("SectionT", bound=BaseModel)


def with_generation(
    loaded: Model,
    values: Mapping[str, Any],
    *,
    structure: Mapping[str, Any] | None = None,
    chat: Mapping[str, Any] | None = None,
    seed: int | str | None = None,
    where: str = "request",
) -> Model:
    """Return the same model with different settings: `with_generation(loaded, {"temperature": 0.8}, seed=7)`.

    Args:
        values: Keys of the section `generation`; they take precedence over the configuration.
        structure: Keys of the section `structure`, which replace the configured structure; empty for none.
        chat: Keys of the section `chat`; they take precedence over the configuration.
        seed: Replaces the configuration's.
        where: The origin of `values`, to be shown with them.

    Raises:
        ConfigError: an unknown key, or a value that the schema refuses.
        UserError: settings that contradict each other.
    """
    plan, config = loaded.plan, loaded.config
    values = renamed("generation", values)
    superseded = superseded_sampling(values, config.generation.model_dump())
    sections: dict[str, Any] = {"generation": _changed(config.generation, "generation", values, without=superseded)}
    if structure is not None:
        sections["structure"] = _validated(StructureSection, "structure", structure)
    if chat is not None:
        sections["chat"] = _changed(config.chat, "chat", chat)
    if seed is not None:
        sections["seed"] = settings_from_mapping({"seed": seed}).config.seed
    config = config.model_copy(update=sections)
    origins = {f"generation.{name}": source for name, source in plan.generation.sources.items()}
    origins |= dict.fromkeys((f"generation.{name}" for name in values), where)
    choice = decide_generation(config, loaded.info, origins=origins)
    faster, _ = decide_decoding(
        config, loaded.machine, loaded.info, devices=plan.devices, quantization=plan.quantization
    )
    ends = loaded.eos_token_ids
    if "extra_eos_tokens" in values:
        stored, extra = loaded.info.generation.eos_token_ids, config.generation.extra_eos_tokens
        ends = tuple(end_tokens(loaded.tokenizer, stored, extra))
    plan = replace(plan, generation_kwargs={**choice.arguments, **faster}, generation=choice, seed=config.seed)
    return replace(loaded, prepared=replace(loaded.prepared, config=config, plan=plan), eos_token_ids=ends)


def _changed(section: SectionT, name: str, values: Mapping[str, Any], *, without: Collection[str] = ()) -> SectionT:
    """Return a section with `values` on top of the keys that are set, except those in `without`."""
    kept = {key: getattr(section, key) for key in section.model_fields_set if key not in without}
    return _validated(type(section), name, {**kept, **values})


def _validated(section: type[SectionT], name: str, values: Mapping[str, Any]) -> SectionT:
    """Return a validated section of the configuration. Raise the same errors as for a complete configuration."""
    try:
        return section.model_validate(values)
    except ValidationError:
        settings_from_mapping({name: values})  # raises a ConfigError that names the keys
        raise
