"""From logits to the next token, for each sequence by its own settings and its own seed."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.top_sampling import Sampler, split
from llmctl.generation.request import Request
from llmctl.loading.transformers_compat import logits_processors

if TYPE_CHECKING:
    from torch import Tensor

# What the engine understands of GenerationConfig. Anything else goes another way.
KNOWN = frozenset(
    {
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
        "no_repeat_ngram_size", "eos_token_id", "pad_token_id", "bos_token_id",
    }
)  # fmt: skip
_MOST_KEPT = 64


class Chooser:
    """Chooses the tokens of one sequence. Its state: the random generator.

    Args:
        seed: What it is seeded with.
        processors: transformers' logits processors, or None when the logits are taken as they are.
        samples: Whether it samples rather than takes the likeliest.
        on_cpu: Whether the logits are on the CPU: only there the numbers of a generator are known one by one.
    """

    def __init__(self, seed: int, processors: Any, *, samples: bool, on_cpu: bool) -> None:
        self._seed, self._processors, self._samples = seed, processors, samples
        self._sampler: Sampler | None = None
        if samples and on_cpu:
            first, warpers = split(processors or ())
            self._processors, self._sampler = type(processors)(first) if first else None, Sampler(warpers)
        self._generator: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token of the logits as they are is the choice."""
        return not self._samples and not self._processors

    def choose(self, ids: Sequence[int], logits: "Tensor") -> int:
        """The token after `ids`, given logits [vocabulary] in float32: as `model.generate` does for one sequence."""
        import torch

        scores = logits[None]
        if self._processors:
            scores = self._processors(torch.tensor([ids], device=logits.device), scores.clone())
        if not self._samples:
            return int(scores.argmax(-1))
        if self._generator is None:
            self._generator = torch.Generator(device=logits.device).manual_seed(self._seed)
        if self._sampler is not None:
            return self._sampler.choose(scores[0], self._generator)
        return int(torch.multinomial(torch.softmax(scores, -1), 1, generator=self._generator))


class Choosers:
    """Makes choosers for one model. Its state: processors that carry none of their own, kept by their arguments: the
    latest, since clients of a server may ask for a temperature of their own each."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: OrderedDict[Any, tuple[Any, bool]] = OrderedDict()

    def make(self, request: Request, more: Sequence[Any] = ()) -> Chooser:
        """A chooser for a request.

        Args:
            request: What is to be generated.
            more: Logits processors of this answer alone; they come after transformers' penalties and before what
                makes it sample.
        """
        if more:
            processors, samples = self._transformers_processors(request, more)
        else:
            key = _without_length(request.arguments)
            if key not in self._kept:
                self._kept[key] = self._transformers_processors(request, ())
            self._kept.move_to_end(key)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            processors, samples = self._kept[key]
        return Chooser(request.seed, processors, samples=samples, on_cpu=self._model.device.type == "cpu")

    def _transformers_processors(self, request: Request, more: Sequence[Any]) -> tuple[Any, bool]:
        """What `model.generate` would use for these arguments and the model's stored settings."""
        from transformers import GenerationConfig

        processors, config = logits_processors(
            self._model, GenerationConfig(**request.arguments), prompt_tokens=len(request.ids), extra=more
        )
        return processors, bool(config.do_sample)


def _without_length(arguments: Mapping[str, Any]) -> Any:
    return tuple(sorted((name, str(value)) for name, value in arguments.items() if name != "max_new_tokens"))
