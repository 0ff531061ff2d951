"""The model that is served, and how a body becomes requests to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmctl.generation.overrides import with_generation
from llmctl.generation.request import Request, make_request
from llmctl.server.http_errors import RequestError
from llmctl.server.metrics import Metrics
from llmctl.server.penalties import Penalties
from llmctl.server.prompt_renderer import Prompts
from llmctl.server.schemas import Sampling

if TYPE_CHECKING:
    from llmctl.loading.loader import LoadedModel
    from llmctl.server.worker import Worker

_COLDEST = 0.01  # below it logits may overflow; the likeliest token is all but certain there
_OWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Served:
    """A model behind a name.

    Attributes:
        name: What clients call it.
        loaded: What `load` returned.
        worker: The thread that computes.
        created: When it was loaded, in seconds since 1970.
        request_seconds: The time of a request.
        metrics: What is counted.
        other_names: What they may call it as well.
    """

    name: str
    loaded: "LoadedModel"
    worker: "Worker"
    created: int
    request_seconds: float
    metrics: Metrics = field(default_factory=Metrics)
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the first one first."""
        return (self.name, *self.other_names)

    @cached_property
    def prompts(self) -> Prompts:
        """Renders conversations."""
        return Prompts(self.loaded.tokenizer)

    def check_name(self, name: str) -> None:
        """Raises a 404 for any other model: names are compared, never looked up."""
        if name not in self.names:
            raise RequestError(
                f"The model {name[:200]!r} does not exist here; this server has {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def settings(
        self, body: Sampling, *, max_tokens: int | None, logprobs: int | None, structure: dict[str, Any] | None = None
    ) -> "LoadedModel":
        """The model, answering as a body asks."""
        values: dict[str, Any] = {name: value for name in _OWN if (value := getattr(body, name)) is not None}
        if 0 < values.get("temperature", 0) < _COLDEST:
            values["temperature"] = _COLDEST
        if max_tokens is not None:
            values["max_new_tokens"] = max_tokens
        if body.stops:
            values["stop_strings"] = body.stops
        if logprobs is not None:
            values["logprobs"] = logprobs
        return with_generation(self.loaded, values, structure=structure)

    def requests(self, asking: "LoadedModel", body: Sampling, ids: Sequence[int], **changes: Any) -> list[Request]:
        """The `n` requests of a prompt. Each has a seed of its own, the first that of the body.

        Raises:
            RequestError: the prompt is too long, or has ids that are no tokens.
        """
        self.check_ids(ids)
        context = self.loaded.context_length
        if context is not None and len(ids) >= context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, the context of this model holds {context}: shorten the prompt",
                code="context_length_exceeded",
            )
        seed = _seed(asking.config.seed if body.seed is None else body.seed)
        request = replace(make_request(asking, ids, seed=seed), **changes)
        return [replace(request, seed=_seed(seed + number)) for number in range(body.n or 1)]

    def processors(self, body: Sampling, prompt_tokens: int) -> list[Any]:
        """The logits processors of one answer."""
        presence, frequency = body.presence_penalty or 0.0, body.frequency_penalty or 0.0
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        if not (presence or frequency or bias):
            return []
        self.check_ids(bias, param="logit_bias")
        return [Penalties(prompt_tokens, presence=presence, frequency=frequency, bias=bias)]

    def check_ids(self, ids: Any, *, param: str = "prompt") -> None:
        """Raises a 400 where an id is none of the model's tokens."""
        most = len(self.loaded.tokenizer)
        if wrong := next((token for token in ids if token >= most), None):
            raise RequestError(f"{wrong} is no token of this model, which has {most}", param=param)


def _seed(seed: int) -> int:
    """Any integer, folded into those that generators take."""
    return seed % 2**32
