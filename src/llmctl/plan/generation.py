"""How tokens are chosen: the arguments of transformers' GenerationConfig."""

from typing import Any

from llmctl.config import Config
from llmctl.errors import UserError
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_ALWAYS = ("repetition_penalty", "no_repeat_ngram_size")


def decide_generation(config: Config, info: ModelInfo) -> tuple[dict[str, Any], tuple[Decision, ...]]:
    """The arguments, and why. What the user left empty follows the model's generation_config.json.

    Raises:
        UserError: keys that contradict each other.
    """
    asked, stored = config.generation, info.generation_config
    said = {name: getattr(asked, name) for name in _SAMPLING if getattr(asked, name) is not None}
    do_sample, reason = _sampling(asked.do_sample, said, bool(stored.get("do_sample", False)))
    arguments: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "do_sample": do_sample}
    for name in _ALWAYS:
        value = getattr(asked, name)
        value = stored.get(name) if value is None else value
        if value is not None:
            arguments[name] = value
    if do_sample:
        for name in _SAMPLING:
            value = said.get(name, stored.get(name))
            if value is not None:
                arguments[name] = value
        # what transformers would fill in, written down so that a run can be repeated with another version
        for name, value in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0)):
            arguments.setdefault(name, value)
    if asked.num_beams > 1:
        arguments["num_beams"] = asked.num_beams
    return arguments, (Decision("do_sample", do_sample, reason),)


def _sampling(asked: bool | None, said: dict[str, Any], stored: bool) -> tuple[bool, str]:
    zero = said.get("temperature") == 0
    if zero and asked:
        raise UserError(
            "generation.temperature is 0, which means greedy, and generation.do_sample is true",
            hint="leave one of them away",
        )
    if zero:
        return False, "temperature is 0"
    if asked is not None:
        return asked, "asked for"
    if said:
        return True, f"{', '.join(said)} set"
    return (
        stored,
        "as the model's generation_config.json says" if stored else "greedy unless a temperature is set",
    )
