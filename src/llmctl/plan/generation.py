"""The choice of generation settings: arguments of transformers' GenerationConfig, and the origin of each."""

from collections.abc import Mapping
from typing import Any

from llmctl.config import Config
from llmctl.config.layers import GREEDY_BELOW, SAMPLING_KEYS
from llmctl.errors import UserError
from llmctl.model.generation_config import GenerationDefaults, LeftOut
from llmctl.model.generation_fields import FIELDS
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import GenerationChoice, shortened

# Settings of a model that could break an answer with a structure; a user's own are refused.
UNSTRUCTURED = frozenset({"stop_strings", "no_repeat_ngram_size", "min_new_tokens", "min_length"})
# transformers' defaults, explicit so that a run can be repeated with another version
_SAMPLING_DEFAULTS = (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0))


def decide_generation(config: Config, info: ModelInfo, *, origins: Mapping[str, str] | None = None) -> GenerationChoice:
    """Return the settings of a run. Keys that the user did not set follow the model's files.

    Args:
        origins: The origins of the user's values by dotted key.

    Raises:
        UserError: keys that contradict each other.
    """
    section, model = config.generation, info.generation
    chosen = _Chosen(config, model, origins or {})
    do_sample, reason = _decide_sampling(chosen, model)
    chosen.put("max_new_tokens", section.max_new_tokens, chosen.origin("max_new_tokens"))
    chosen.put("do_sample", do_sample, reason)
    if do_sample:
        chosen.take("sampling")
        chosen.drop_greedy_temperature()
        for name, value in _SAMPLING_DEFAULTS:
            if name not in chosen.arguments:
                chosen.put(name, value, "default")
    chosen.take("always")
    if section.num_beams > 1:
        chosen.put("num_beams", section.num_beams, chosen.origin("num_beams"))
        chosen.take("beams")
    stop_strings = chosen.arguments.pop("stop_strings", ())
    return GenerationChoice(
        chosen.arguments,
        tuple(stop_strings),
        chosen.sources,
        frozenset(chosen.from_model),
        (*model.left_out, *chosen.left_out),
        reason,
    )


class _Chosen:
    """The settings chosen so far: their values and origins, and what is left out."""

    def __init__(self, config: Config, model: GenerationDefaults, origins: Mapping[str, str]) -> None:
        self._section, self._model, self._origins = config.generation, model, origins
        self._is_structured = bool(config.structure.model_dump(exclude_none=True))
        self.arguments: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.from_model: set[str] = set()
        self.left_out: list[LeftOut] = []

    def put(self, name: str, value: Any, source: str) -> None:
        self.arguments[name], self.sources[name] = value, source

    def user_value(self, name: str) -> Any:
        """Return the user's value, or None. Of stop strings, an empty list is a value."""
        if name == "stop_strings" and name not in self._section.model_fields_set:
            return None
        return getattr(self._section, name, None)

    def origin(self, name: str) -> str:
        """Return the origin of the user's value."""
        known = self._origins.get(f"generation.{name}")
        return known or ("configuration" if name in self._section.model_fields_set else "default")

    def take(self, use: str) -> None:
        """Choose the values of all fields with this use."""
        for name, known in FIELDS.items():
            if known.use != use or name in ("do_sample", "eos_token_id"):
                continue
            value = self.user_value(name)
            if value is not None:
                if value != []:
                    self.put(name, value, self.origin(name))
            elif name in self._model.values:
                self._take_models(name)

    def drop_greedy_temperature(self) -> None:
        """Leave out a temperature of the model that means greedy, because the user asked for sampling."""
        if self.arguments.get("temperature", 1) < GREEDY_BELOW:
            reason = "it means greedy, and sampling is asked for"
            self.left_out.append(LeftOut("temperature", str(self.arguments.pop("temperature")), reason))

    def _take_models(self, name: str) -> None:
        value = self._model.values[name]
        if self._is_structured and name in UNSTRUCTURED:
            reason = "it could break the structure of the answer"
            self.left_out.append(LeftOut(name, str(shortened(value)), reason, file=self._model.file))
        else:
            self.put(name, value, self._model.source(name))
            self.from_model.add(name)


def _decide_sampling(chosen: _Chosen, model: GenerationDefaults) -> tuple[bool, str]:
    configured = [name for name in SAMPLING_KEYS if chosen.user_value(name) is not None]
    do_sample, temperature = chosen.user_value("do_sample"), chosen.user_value("temperature")
    is_zero = temperature is not None and temperature < GREEDY_BELOW
    if is_zero and do_sample:
        raise UserError(
            f"generation.temperature is {temperature:g}, which means greedy, and generation.do_sample is true",
            hint="omit one of them",
        )
    if is_zero:
        return False, f"temperature is {temperature:g} ({chosen.origin('temperature')})"
    if do_sample is False and configured:
        raise UserError(
            f"generation.do_sample is false ({chosen.origin('do_sample')}), and only sampling uses "
            f"{', '.join(f'generation.{name} ({chosen.origin(name)})' for name in configured)}",
            hint="omit one of them; --temperature 0 is greedy",
        )
    if do_sample is not None:
        return do_sample, f"asked for ({chosen.origin('do_sample')})"
    if configured:
        return True, ", ".join(f"{name} set ({chosen.origin(name)})" for name in configured)
    if not model.values.get("do_sample"):
        return False, "greedy unless a temperature is set"
    if model.values.get("temperature", 1) < GREEDY_BELOW:
        return False, f"{model.source('do_sample')}: do_sample is true, but its temperature is 0, which means greedy"
    return True, f"as {model.source('do_sample')} says"
