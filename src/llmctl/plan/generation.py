"""The choice of sampling parameters: arguments of transformers' GenerationConfig."""

from typing import Any

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_ALWAYS = ("repetition_penalty", "no_repeat_ngram_size")


def decide_generation(config: Config, info: ModelInfo) -> tuple[dict[str, Any], tuple[Decision, ...]]:
    """Return the arguments and the reason. Keys that the user did not set follow the model's generation_config.json.

    Raises:
        UserError: keys that contradict each other.
    """
    section, stored = config.generation, info.generation_config
    configured = {name: getattr(section, name) for name in _SAMPLING if getattr(section, name) is not None}
    do_sample, reason = _decide_sampling(section.do_sample, configured, bool(stored.get("do_sample", False)))
    arguments: dict[str, Any] = {"max_new_tokens": section.max_new_tokens, "do_sample": do_sample}
    for name in _ALWAYS:
        value = getattr(section, name)
        value = stored.get(name) if value is None else value
        if value is not None:
            arguments[name] = value
    if do_sample:
        for name in _SAMPLING:
            value = configured.get(name, stored.get(name))
            if value is not None:
                arguments[name] = value
        # the defaults of transformers, explicit so that a run can be repeated with another version
        for name, value in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0)):
            arguments.setdefault(name, value)
    if section.num_beams > 1:
        arguments["num_beams"] = section.num_beams
    return arguments, (Decision("do_sample", do_sample, reason),)


def _decide_sampling(do_sample: bool | None, configured: dict[str, Any], stored: bool) -> tuple[bool, str]:
    zero = configured.get("temperature") == 0
    if zero and do_sample:
        raise UserError(
            "generation.temperature is 0, which means greedy, and generation.do_sample is true",
            hint="omit one of them",
        )
    if zero:
        return False, "temperature is 0"
    if do_sample is not None:
        return do_sample, "asked for"
    if configured:
        return True, f"{', '.join(configured)} set"
    return (
        stored,
        "as the model's generation_config.json says" if stored else "greedy unless a temperature is set",
    )
