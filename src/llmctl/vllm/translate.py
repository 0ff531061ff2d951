"""A configuration as arguments of `vllm serve`, key by key: how each is said, or why it cannot be. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.config import Config, Settings
from llmctl.config.schema import all_keys, field_of
from llmctl.errors import ConfigError, Problem
from llmctl.model.info import ModelInfo
from llmctl.plan.generation import decide_generation
from llmctl.vllm.arguments import Said, Target, cannot
from llmctl.vllm.rules import ALWAYS, RULES, served_names, value_of


@dataclass(frozen=True)
class Key:
    """What became of one key.

    Attributes:
        key: Its dotted path.
        value: Its value.
        said: How vLLM is told, or why it is not.
    """

    key: str
    value: Any
    said: Said


@dataclass(frozen=True)
class Translation:
    """A configuration in vLLM's words.

    Attributes:
        arguments: Of `vllm serve`, the model among them.
        environment: Variables for it. Never a secret.
        served_name: What clients call the model.
        keys: Every key that is set, and those that are always said.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    served_name: str
    keys: tuple[Key, ...]

    def problems(self, settings: Settings) -> list[Problem]:
        """What cannot be translated, with where it was said."""
        return [
            Problem(settings.origin(one.key), one.key, one.said.text) for one in self.keys if one.said.kind == "problem"
        ]


def translate(config: Config, target: Target | None = None) -> Translation:
    """Every key of a configuration in vLLM's words. What has its default and is vLLM's default too is left away."""
    target = target or Target()
    keys: list[Key] = []
    for key in all_keys():
        value, default = value_of(config, key), field_of(key).get_default(call_default_factory=True)
        rule = RULES.get(key)
        if rule is None:
            if value != default:
                keys.append(Key(key, value, cannot("vLLM has nothing like it that llmctl knows of")))
            continue
        if value != default or key in ALWAYS:
            said = rule(config, target)
            if said is not None:
                keys.append(Key(key, value, said))
    arguments = [*(text for one in keys for text in one.said.arguments), *_sampling(config, target)]
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    for one in keys:
        environment |= one.said.environment
    return Translation(tuple(arguments), environment, served_names(config)[0], tuple(keys))


def check(settings: Settings, target: Target) -> Translation:
    """The translation, if everything that is set can be translated.

    Raises:
        ConfigError: naming every key that cannot.
    """
    translation = translate(settings.config, target)
    if problems := translation.problems(settings):
        raise ConfigError(
            problems,
            hint="vLLM cannot be told these: change them, or leave --engine vllm away; see llmctl config explain",
        )
    return translation


def _sampled(config: Config, target: Target) -> dict[str, Any]:
    """What requests get that say nothing: as `plan.generation` decides it, in vLLM's names."""
    stored = ModelInfo("", {}, (), generation_config=target.generation_config)
    decided = decide_generation(config, stored)[0]
    names = ("temperature", "top_k", "top_p", "min_p") if decided["do_sample"] else ()
    said = {name: decided[name] for name in (*names, "repetition_penalty") if decided.get(name) is not None}
    return said if decided["do_sample"] else {"temperature": 0.0, **said}


def _sampling(config: Config, target: Target) -> list[str]:
    if target.purpose == "batch":
        # requests say everything; of the backends for their grammars, this one is llguidance, as here
        return ["--generation-config", "vllm", "--structured-outputs-config", json.dumps({"backend": "guidance"})]
    said = _sampled(config, target)
    if "max_new_tokens" in config.generation.model_fields_set:
        said["max_new_tokens"] = config.generation.max_new_tokens
    return ["--generation-config", "vllm", "--override-generation-config", json.dumps(said)]
