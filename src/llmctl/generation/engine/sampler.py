"""Sampling of the next token from logits, with the settings and the seed of each sequence."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.candidate_sampler import CandidateSampler, split
from llmctl.generation.request import Request
from llmctl.gpu.sampling import Warping
from llmctl.model.generation_fields import FIELDS
from llmctl.transformers_compat import logits_processors

if TYPE_CHECKING:
    from torch import Tensor

# The arguments of GenerationConfig that packed sequences support. A request with any other argument runs alone.
PACKABLE_ARGUMENTS = frozenset(
    {"max_new_tokens", "pad_token_id", "bos_token_id"}
    | {name for name, known in FIELDS.items() if known.use in ("always", "sampling")}
)
_COUNTS_FROM_PROMPT = {"min_new_tokens", "begin_suppress_tokens"}  # their processors know the length of the prompt
_MAX_CACHED = 64


class Sampler:
    """Chooses the tokens of one sequence. Its state: the random generator, on a CPU.

    Args:
        processors: transformers' LogitsProcessorList, or None.
        samples: Sample rather than take the argmax.
        on_cpu: Sample with a random generator, as `model.generate` does, by `sample`. Otherwise `next_tokens` chooses.

    Attributes:
        processors: The processors that need the whole vocabulary, before the last warpers.
        warping: The settings of the last warpers.
    """

    def __init__(self, seed: int, processors: Any, *, samples: bool, on_cpu: bool) -> None:
        self.seed, self.samples = seed, samples
        first, warpers = split(processors or ()) if samples else (list(processors or ()), [])
        self.processors = type(processors)(first) if first else None
        self.warping = Warping.of(warpers)
        self._candidates = CandidateSampler(warpers) if samples and on_cpu else None
        self._generator: Any = None

    @property
    def is_greedy(self) -> bool:
        """True if the next token is the argmax of the raw logits."""
        return not self.samples and not self.processors

    def sample(self, ids: Sequence[int], logits: "Tensor") -> int:
        """Return the token after `ids`, as `model.generate` chooses it for one sequence on a CPU.

        Args:
            logits: [vocabulary] in float32.
        """
        import torch

        scores = logits[None]
        if self.processors:
            scores = self.processors(torch.tensor([ids]), scores.clone())
        if self._candidates is None:
            return int(scores.argmax(-1))
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._candidates.sample(scores[0], self._generator)


class Samplers:
    """Makes samplers for one model.

    Args:
        on_cpu: True for sampling as `model.generate` does it on a CPU, sequence by sequence.

    Its state: the processors of recent settings, by their arguments. Their number is bounded, since every client of a
    server may use a different temperature.
    """

    def __init__(self, model: Any, *, on_cpu: bool) -> None:
        self._model, self.on_cpu = model, on_cpu
        self._kept: OrderedDict[Any, tuple[Any, bool]] = OrderedDict()

    def make(self, request: Request, processors: Sequence[Any] = ()) -> Sampler:
        """Return a sampler for a request.

        Args:
            processors: Logits processors for this answer only. They are applied after transformers' penalties and
                before its sampling warpers.
        """
        if processors:
            merged, samples = self._merged(request, processors)
        else:
            key = _cache_key(request)
            if key not in self._kept:
                self._kept[key] = self._merged(request, ())
            self._kept.move_to_end(key)
            if len(self._kept) > _MAX_CACHED:
                self._kept.popitem(last=False)
            merged, samples = self._kept[key]
        return Sampler(request.seed, merged, samples=samples, on_cpu=self.on_cpu)

    def _merged(self, request: Request, processors: Sequence[Any]) -> tuple[Any, bool]:
        """Return the processors that `model.generate` would use, and True if it would sample."""
        from transformers import GenerationConfig

        merged, config = logits_processors(
            self._model, GenerationConfig(**request.arguments), prompt_tokens=len(request.prompt), extra=processors
        )
        return merged, bool(config.do_sample)


def top_tokens(logits: "Tensor") -> list[int]:
    """Return the argmax of each row [vocabulary] of logits on the CPU, the first of equal ones."""
    # torch's argmax takes 25 times as long as NumPy's (torch 2.13, AVX-512)
    return [int(token) for token in logits.float().numpy().argmax(-1)]


def _cache_key(request: Request) -> Any:
    """Return everything that the processors of a request depend on."""
    arguments = request.arguments
    prompt_tokens = len(request.prompt) if _COUNTS_FROM_PROMPT & arguments.keys() else None
    values = sorted((name, str(value)) for name, value in arguments.items() if name != "max_new_tokens")
    return prompt_tokens, tuple(values)
