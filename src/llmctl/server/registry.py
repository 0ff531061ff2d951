"""The served model, its names, and the conversion of a request body into generation requests."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.overrides import with_generation
from llmctl.generation.pictures import Picture
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import NO_TOKEN, Request, answer_seed, make_request
from llmctl.generation.tools import ToolUse
from llmctl.loading.image_encoder import image_encoder
from llmctl.model.vocabulary import check_ids
from llmctl.server.http_errors import RequestError
from llmctl.server.image_reader import ImageReader, PlacedImage
from llmctl.server.metrics import Metrics
from llmctl.server.penalties import MinimumLength, Penalties
from llmctl.server.prompt_renderer import PromptRenderer
from llmctl.server.schemas import Sampling

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.server.worker import Worker

_log = logging.getLogger("llmctl.serve")
Submitted = TypeVar("Submitted")
_MIN_TEMPERATURE = 0.01  # logits may overflow below it, and sampling is practically greedy
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True)
class ModelRegistry:
    """The model of a server and its names.

    Attributes:
        name: The model's name in responses.
        loaded: The result of `load`.
        worker: The thread that generates.
        created: Unix time at which the model was loaded.
        request_seconds: Time limit of a request.
        metrics: The server's counters.
        other_names: Further names that clients may use.
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
        """All names, `name` first."""
        return (self.name, *self.other_names)

    @cached_property
    def prompts(self) -> PromptRenderer:
        """The renderer of conversations."""
        return PromptRenderer(
            self.loaded.tokenizer,
            self.loaded.config.chat,
            context_length=self.loaded.context_length,
            processor=LazyImageProcessor(self.loaded),
        )

    @cached_property
    def images(self) -> ImageReader:
        """The reader of images."""
        return ImageReader(LazyImageProcessor(self.loaded), fetches=self.loaded.config.serve.fetch_images)

    async def prepare_answer(
        self, images: Sequence[PlacedImage], work: Callable[[list[Picture]], Submitted]
    ) -> Submitted:
        """Return the result of `work` with the pictures of a request, once the model can encode them.

        Towers that cannot be loaded fail this request; in the engine, they would fail all running answers.
        """
        prepared = await self.images.prepare(images, work)
        if images:
            try:
                await self.worker.call(image_encoder(self.loaded).towers)
            except MachineError:
                raise
            except LlmctlError as error:  # its message contains the model's folder
                _log.warning("%s", error.message)
                raise RequestError(
                    "this server cannot load the model's parts for images; its log has the reason",
                    param=images[0].place,
                    code="unsupported_image",
                ) from error
        return prepared

    def check_model(self, name: str) -> None:
        """Raise a 404 if the name is not one of this model's. It is never used as a path or a Hub id."""
        if name not in self.names:
            raise RequestError(
                f"The model {name[:200]!r} does not exist; this server has {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def with_settings(self, body: Sampling, *, max_tokens: int | None, logprobs: int | None) -> "LoadedModel":
        """Return the model with the settings of a body.

        Args:
            body: The request.
            max_tokens: Token limit of the answer; None keeps the configuration's.
            logprobs: Alternatives per token; None for no log-probabilities.
        """
        values: dict[str, Any] = {key: value for key in _SAMPLING_KEYS if (value := getattr(body, key)) is not None}
        if 0 < values.get("temperature", 0) < _MIN_TEMPERATURE:
            values["temperature"] = _MIN_TEMPERATURE
        if max_tokens is not None:
            values["max_new_tokens"] = max_tokens
        if body.stops:
            values["stop_strings"] = body.stops
        if logprobs is not None:
            values["logprobs"] = logprobs
        if values.get("top_k") == -1:
            values["top_k"] = 0
        return with_generation(self.loaded, values, structure=body.structure()[1])

    def requests(
        self, model: "LoadedModel", body: Sampling, prompt: Prompt, *, tools: ToolUse | None = None
    ) -> list[Request]:
        """Return the `n` requests for one prompt. The first has the body's seed, each of the others its own.

        Raises:
            RequestError: the prompt is too long or has ids outside the vocabulary, or the structure is not possible.
        """
        check_ids(prompt.ids, self.loaded.tokenizer, self.loaded.info.embedding_rows)
        self.check_token_ids(prompt.ids)
        context = self.loaded.context_length
        if context is not None and len(prompt) >= context:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, but the model's context length is {context}: shorten the prompt",
                code="context_length_exceeded",
            )
        seed = answer_seed(model, None if body.seed is None else _fold_seed(body.seed))
        request = self._ending(self._structured(model, body, prompt, seed=seed, tools=tools), body)
        return [replace(request, seed=_fold_seed(seed + number)) for number in range(body.n or 1)]

    def _structured(
        self, model: "LoadedModel", body: Sampling, prompt: Prompt, *, seed: int, tools: ToolUse | None
    ) -> Request:
        """Return the request with its structure. An error of the structure gets the name of the field."""
        try:
            return make_request(model, prompt, seed=seed, tools=tools)
        except UserError as error:
            name, _ = body.structure()
            if name is None or not error.message.startswith("structure."):
                raise
            raise RequestError(error.message, param=name) from error

    def _ending(self, request: Request, body: Sampling) -> Request:
        """Return the request with the end tokens that a body asks for, and with special tokens in its text.

        Raises:
            RequestError: a structure determines the end, or a token does not exist.
        """
        ends = () if body.ignore_eos else request.arguments["eos_token_id"]
        if body.ignore_eos or body.stop_token_ids or body.min_tokens:
            name = next(key for key in ("ignore_eos", "stop_token_ids", "min_tokens") if getattr(body, key))
            if request.structure is not None:
                raise RequestError(f"{name} cannot be combined with a structure, which determines the end", param=name)
            if (body.min_tokens or 0) > request.budget:
                raise RequestError("min_tokens is larger than the token limit", param="min_tokens")
            self.check_token_ids(body.stop_token_ids or (), param="stop_token_ids")
            ends = list(dict.fromkeys([*ends, *(body.stop_token_ids or ())])) or [NO_TOKEN]
            request = replace(request, arguments={**request.arguments, "eos_token_id": ends})
        return replace(request, shows_special_tokens=body.skip_special_tokens is False)

    def processors(self, body: Sampling, request: Request) -> list[Any]:
        """Return the logits processors for one answer."""
        presence, frequency = body.presence_penalty or 0.0, body.frequency_penalty or 0.0
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        prompt_tokens = len(request.prompt)
        processors: list[Any] = []
        if presence or frequency or bias:
            self.check_token_ids(bias, param="logit_bias")
            processors.append(Penalties(prompt_tokens, presence=presence, frequency=frequency, bias=bias))
        ends = request.eos_token_ids - {NO_TOKEN}
        if body.min_tokens and ends:
            processors.append(MinimumLength(prompt_tokens, tokens=body.min_tokens, end_tokens=ends))
        return processors

    def check_token_ids(self, ids: Iterable[int], *, param: str = "prompt") -> None:
        """Raise a 400 if an id is outside the vocabulary, or the model has no embedding for it."""
        size = min(len(self.loaded.tokenizer), self.loaded.info.embedding_rows or sys.maxsize)
        if wrong := next((token for token in ids if token >= size), None):
            raise RequestError(f"{wrong} is not a token id of this model, which has {size} tokens", param=param)


def _fold_seed(seed: int) -> int:
    """Reduce any integer to the seed range of the random generators."""
    return seed % 2**32
