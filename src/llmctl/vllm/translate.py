"""Translation of a configuration into arguments of `vllm serve`, key by key. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.config import Config, Settings
from llmctl.config.schema import all_keys, field_of
from llmctl.errors import ConfigError, Problem
from llmctl.model.info import ModelInfo
from llmctl.plan.generation import decide_generation
from llmctl.vllm.arguments import Outcome, Target, not_possible
from llmctl.vllm.rules import ALWAYS_TRANSLATED, RULES, served_names, value_of

# Settings of a model that reach vLLM as defaults of its server, and those that a batch sends with each request.
_DEFAULTS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
_IN_REQUESTS = {"stop_strings", "min_new_tokens"}


@dataclass(frozen=True)
class TranslatedKey:
    """One key, its value and its translation.

    Attributes:
        key: Its dotted path.
        value: Its value.
        outcome: Its translation, or the reason why there is none.
    """

    key: str
    value: Any
    outcome: Outcome


@dataclass(frozen=True)
class Translation:
    """A configuration as vLLM's arguments.

    Attributes:
        arguments: Arguments of `vllm serve`, including the model.
        environment: Environment variables for vLLM; never secrets.
        served_name: The model's name for clients.
        keys: All keys that differ from their defaults, and those that are always translated.
        unused: Names of settings in the model's files that vLLM does not apply.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    served_name: str
    keys: tuple[TranslatedKey, ...]
    unused: tuple[str, ...] = ()

    def problems(self, settings: Settings) -> list[Problem]:
        """Return the keys that cannot be translated, with their origins."""
        return [
            Problem(settings.origin(key.key), key.key, key.outcome.text)
            for key in self.keys
            if key.outcome.kind == "not possible"
        ]


def translate(config: Config, target: Target | None = None) -> Translation:
    """Translate every key of a configuration, except defaults that are also vLLM's defaults."""
    target = target or Target()
    keys: list[TranslatedKey] = []
    for name in all_keys():
        value, default = value_of(config, name), field_of(name).get_default(call_default_factory=True)
        if value == default and name not in ALWAYS_TRANSLATED:
            continue
        rule = RULES.get(name)
        outcome = rule(config, target) if rule else not_possible("llmctl knows no equivalent of it in vLLM")
        if outcome is not None:
            keys.append(TranslatedKey(name, value, outcome))
    arguments = [*(text for key in keys for text in key.outcome.arguments), *_sampling_arguments(config, target)]
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    for key in keys:
        environment |= key.outcome.environment
    return Translation(tuple(arguments), environment, served_names(config)[0], tuple(keys), _unused(config, target))


def check(settings: Settings, target: Target) -> Translation:
    """Translate a configuration.

    Raises:
        ConfigError: some keys cannot be translated; the error lists all of them.
    """
    translation = translate(settings.config, target)
    if problems := translation.problems(settings):
        raise ConfigError(
            problems,
            hint="vLLM has no equivalent of these: change them or omit --engine vllm; see llmctl config explain",
        )
    return translation


def _sampling_arguments(config: Config, target: Target) -> list[str]:
    if target.purpose == "batch":
        # Requests carry every sampling setting. The backend for their grammars is llguidance, as with transformers.
        return ["--generation-config", "vllm", "--structured-outputs-config", json.dumps({"backend": "guidance"})]
    defaults = _sampling_defaults(config, target)
    if "max_new_tokens" in config.generation.model_fields_set:
        defaults["max_new_tokens"] = config.generation.max_new_tokens
    return ["--generation-config", "vllm", "--override-generation-config", json.dumps(defaults)]


def _unused(config: Config, target: Target) -> tuple[str, ...]:
    """Return the settings of the model's files that vLLM gets neither as defaults nor in requests."""
    choice = decide_generation(config, ModelInfo("", {}, (), generation=target.generation))
    passed = _DEFAULTS | (_IN_REQUESTS if target.purpose == "batch" else set())
    left_out = [one.name for one in choice.left_out if one.changes_text]
    return (*left_out, *sorted(choice.from_model - passed))


def _sampling_defaults(config: Config, target: Target) -> dict[str, Any]:
    """Return the sampling defaults for requests, as `plan.generation` decides them, under vLLM's names."""
    info = ModelInfo("", {}, (), generation=target.generation)
    decided = decide_generation(config, info).arguments
    names = ("temperature", "top_k", "top_p", "min_p") if decided["do_sample"] else ()
    defaults = {name: decided[name] for name in (*names, "repetition_penalty") if decided.get(name) is not None}
    return defaults if decided["do_sample"] else {"temperature": 0.0, **defaults}
