"""A request: one prompt with all settings that determine its answer."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import LengthLimit
from llmctl.generation.prompt import Prompt
from llmctl.generation.prompt_length import too_long
from llmctl.generation.response import ResponseRules, response_rules
from llmctl.generation.structured.structure import Structure, make_structure, refuse_combinations
from llmctl.generation.tools import ToolUse
from llmctl.model.vocabulary import check_ids
from llmctl.plan.generation import UNSTRUCTURED
from llmctl.transformers_compat import compile_on_cpu

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llmctl.loading.model import PromptModel

NO_TOKEN = 2**31 - 1  # no model generates it: an answer with this end token alone ends at its token limit


@dataclass(frozen=True)
class Request:
    """One prompt with its settings.

    Attributes:
        arguments: Arguments of transformers' GenerationConfig, end tokens included.
        seed: The seed of the random generators.
        budget: Maximum tokens to generate: `max_new_tokens`, or the rest of the context.
        fills_context: True if `budget` is the rest of the context, and less than `max_new_tokens`.
        stop_strings: Strings that end the answer; they are not part of it.
        logprobs: Number of top tokens to record at each position; 0 for the chosen one only, None for nothing.
        structure: The structure that the answer must match.
        response: The rules by which the answer is split into reasoning, text and calls; None for plain text.
        shows_special_tokens: True if special tokens stay in the text.
    """

    prompt: Prompt
    arguments: Mapping[str, Any]
    seed: int
    budget: int
    stop_strings: tuple[str, ...]
    logprobs: int | None = None
    structure: Structure | None = None
    response: ResponseRules | None = None
    fills_context: bool = False
    shows_special_tokens: bool = False

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends the answer."""
        return frozenset(self.arguments["eos_token_id"])

    @property
    def length_limit(self) -> LengthLimit:
        """The limit that `budget` comes from."""
        return "context" if self.fills_context else "max_new_tokens"


def make_request(
    loaded: "PromptModel",
    prompt: Prompt,
    *,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    tools: ToolUse | None = None,
) -> Request:
    """Return the request for a prompt, with the settings of the model's configuration.

    Args:
        tools: The tools that the model may call.

    Raises:
        UserError: the prompt is longer than the model's context or has a token without an embedding, or the structure
            cannot be enforced.
    """
    check_ids(prompt.text_ids, loaded.tokenizer, loaded.info.embedding_rows)
    wanted = max_new_tokens or loaded.config.generation.max_new_tokens
    budget = _budget(loaded, len(prompt), wanted)
    rules = response_rules(loaded.tokenizer, loaded.config.chat, prompt, tools) if prompt.templated else None
    request = Request(
        prompt=prompt,
        arguments=_arguments(loaded, len(prompt), budget),
        seed=answer_seed(loaded, seed),
        budget=budget,
        stop_strings=loaded.plan.generation.stop_strings,
        logprobs=loaded.config.generation.logprobs,
        response=rules,
        fills_context=budget < wanted,
    )
    return _with_structure(loaded, request)


def _with_structure(loaded: "PromptModel", request: Request) -> Request:
    """Return a request with the configured structure, and with that of required tools."""
    configured = make_structure(loaded.config.structure)
    rules = request.response
    structure = configured if rules is None else rules.structure(loaded.tokenizer, configured)
    if structure is None:
        return request
    from llmctl.generation.structured.constraint import check_for

    arguments, stop_strings = _without_models_own(loaded, dict(request.arguments), request.stop_strings)
    if configured is not None:
        refuse_combinations({**arguments, "stop_strings": stop_strings})
    check_for(structure, loaded.tokenizer)
    return replace(request, arguments=arguments, stop_strings=stop_strings, structure=structure)


def _arguments(loaded: "PromptModel", prompt_tokens: int, budget: int) -> dict[str, Any]:
    """Return the arguments of GenerationConfig for a prompt of this length."""
    arguments = loaded.generation_arguments()
    arguments["max_new_tokens"] = budget
    for name, limit in (("min_new_tokens", budget), ("min_length", prompt_tokens + budget)):
        if name in arguments:  # transformers warns about a larger one
            arguments[name] = min(arguments[name], limit)
    if "compile_config" in arguments:
        # compiled code is valid for one cache length: use a power of two, so that later answers can reuse it
        arguments["max_cache_len"] = 1 << (prompt_tokens + budget - 1).bit_length()
    return arguments


def _without_models_own(
    loaded: "PromptModel", arguments: dict[str, Any], stop_strings: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return arguments and stop strings without those of the model's files that could break a structure."""
    own = UNSTRUCTURED & loaded.plan.generation.from_model
    kept = {name: value for name, value in arguments.items() if name not in own}
    return kept, () if "stop_strings" in own else stop_strings


def answer_seed(loaded: "PromptModel", seed: int | None = None) -> int:
    """Return the seed of an answer: `seed`, the configuration's, or else a drawn one; 0 without sampling."""
    if seed is None:
        seed = loaded.plan.seed
    if seed is not None:
        return seed
    return secrets.randbelow(2**32) if loaded.plan.generation_kwargs.get("do_sample") else 0


def generation_config(arguments: Mapping[str, Any]) -> "GenerationConfig":
    """Return the GenerationConfig for the arguments of a request, which are plain values."""
    from transformers import CompileConfig, GenerationConfig

    values = dict(arguments)
    compiling = values.pop("compile_config", None)
    if compiling is not None:
        values["compile_config"] = CompileConfig(**compiling)
        compile_on_cpu(values["compile_config"])
    return GenerationConfig(**values)


def _budget(loaded: "PromptModel", prompt_tokens: int, wanted: int) -> int:
    """Return the number of tokens that may be generated before the context is full."""
    context = loaded.context_length
    if context is None:
        return wanted
    if prompt_tokens >= context:
        raise too_long(prompt_tokens, context, source=loaded.plan.source)
    return min(wanted, context - prompt_tokens)
