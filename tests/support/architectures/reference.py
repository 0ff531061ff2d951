"""The answers of plain transformers in float32, and the comparison of other answers with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.architectures.build import auto_class
from support.architectures.prompts import PROMPTS, Ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NEW_TOKENS = 12
NO_TOKEN = 2**31 - 1  # an end token that no model generates
# Two computations of the same float32 logits differ by less than this, and so do passes of a compiled program.
LOGPROB_TOLERANCE = 2e-3
# torch's products in half precision round by the number of their rows, and routers choose other experts after that.
LOGPROB_TOLERANCE_OF_MODULES = 0.3


@dataclass(frozen=True)
class Answer:
    """Generated tokens and their log-probabilities."""

    ids: Ids
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """The results of plain transformers.

    Attributes:
        answers: One answer to each prompt.
        logprobs: Log-probabilities [tokens, vocabulary] after each token of the longest prompt.
        lost: `lost_information` of the same model in bfloat16, and with weights that were rounded to 8 and 4 bits.
    """

    answers: tuple[Answer, ...]
    logprobs: "Tensor"
    lost: Mapping[str, float]


def plain_reference(folder: Path, prompts: Sequence[Ids], columns: Sequence[str], *, is_composite: bool) -> Reference:
    """Load a checkpoint with transformers alone, answer prompts, and measure the loss of each column by rounding."""
    import torch

    model = plain_model(folder, is_composite=is_composite, dtype=torch.float32)
    answers = tuple(_generate(model, prompt) for prompt in prompts)
    logprobs = context_logprobs(model)
    lost = {}
    for column in columns:
        if column == "bfloat16":
            rounded = plain_model(folder, is_composite=is_composite, dtype=torch.bfloat16)
            lost[column] = lost_information(logprobs, context_logprobs(rounded))
        else:
            lost[column] = _lost_by_rounding(model, logprobs, int(column.split()[0]))
    return Reference(answers, logprobs, lost)


def plain_model(folder: Path, *, is_composite: bool, dtype: "torch.dtype") -> Any:
    """Load a checkpoint with transformers alone, without settings that force or forbid tokens."""
    from transformers import GenerationConfig

    model = auto_class(is_composite=is_composite).from_pretrained(str(folder), dtype=dtype).eval()
    model.generation_config = GenerationConfig()
    return model


def _lost_by_rounding(model: Any, logprobs: "Tensor", bits: int) -> float:
    """Return the loss by rounding alone; the largest of several grids where it exceeds all that the model knows.

    So large a loss is chance: for a BERT of this size, scales that differ by a few percent lose from 100 to 300 %.
    """

    def lost(stretch: float) -> float:
        with _rounded_weights(model, bits, stretch), _rounded_inputs(model):
            return lost_information(logprobs, context_logprobs(model))

    first = lost(1.0)
    return first if first < 1 else max(first, *(lost(stretch) for stretch in (0.97, 1.02, 1.05)))


@contextmanager
def _rounded_weights(model: Any, bits: int, stretch: float) -> Iterator[None]:
    """Round the weights of linear layers and experts to integers with a scale for 32 of them, inside the block.

    Args:
        stretch: Multiplies the scales.
    """
    import torch

    largest = 2 ** (bits - 1) - 1
    originals = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or min(parameter.shape[-2:]) < 32 or parameter.shape[-1] % 32 or "embed" in name:
                continue
            originals[name] = parameter.detach().clone()
            blocks = parameter.unflatten(-1, (-1, 32))
            scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest * stretch
            parameter.copy_(((blocks / scale).round().clamp(-largest, largest) * scale).flatten(-2))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in originals:
                    parameter.copy_(originals[name])


@contextmanager
def _rounded_inputs(model: Any) -> Iterator[None]:
    """Round the inputs of linear layers to 8 bits with a scale for 32 of them, inside the block, as the kernels do."""
    import torch

    def rounded(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        blocks = arguments[0].unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        return ((blocks / scale).round() * scale).flatten(-2), *arguments[1:]

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [
        module.register_forward_pre_hook(rounded)
        for module in linear
        if min(module.weight.shape) >= 32 and module.in_features % 32 == 0
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def context_logprobs(model: Any) -> "Tensor":
    """Return log-probabilities [tokens, vocabulary] in float32 after each token of the longest prompt."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([PROMPTS[-1]])).logits[0].float().log_softmax(-1)


def _generate(model: Any, prompt: Ids) -> Answer:
    import torch
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=NO_TOKEN)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = tuple(output.sequences[0, len(prompt) :].tolist())
    logits = [row[0].float().log_softmax(-1) for row in output.logits]
    return Answer(new, tuple(float(row[token]) for row, token in zip(logits, new, strict=True)))


def one_pass_answers(
    folder: Path, prompts: Sequence[Ids], answers: Sequence[Answer], *, is_composite: bool
) -> list[Answer]:
    """Return the most probable token at each place of answers, computed by transformers in one pass for each token.

    A pass over a prompt with the answer so far has no cache. transformers' own generation differs from it where a layer
    has another formula for single tokens, and in 5.18 where longrope changes.
    """
    import torch

    model, expected = plain_model(folder, is_composite=is_composite, dtype=torch.float32), []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, best = [*prompt, *answer.ids], []
        for end in range(len(prompt), len(ids)):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
            best.append(logits.log_softmax(-1).max(-1))
        expected.append(Answer(tuple(int(one.indices) for one in best), tuple(float(one.values) for one in best)))
    return expected


def difference(expected: Answer, given: Answer, *, tolerance: float = LOGPROB_TOLERANCE) -> str | None:
    """Return the first difference of two greedy answers; None if there is none but rounding.

    A different token with the same log-probability is a tie that rounding decided: the rest is not compared.
    """
    for place, (token, other) in enumerate(zip(expected.ids, given.ids, strict=False)):
        gap = abs(expected.logprobs[place] - given.logprobs[place])
        if not gap <= tolerance:
            return (
                f"token {place}: log-probability {given.logprobs[place]:.3f} instead of {expected.logprobs[place]:.3f}"
            )
        if token != other:
            return None
    return None if len(expected.ids) == len(given.ids) else f"{len(given.ids)} instead of {len(expected.ids)} tokens"


def lost_information(expected: "Tensor", given: "Tensor") -> float:
    """Return the share of what a model knows from the context that an approximation of it has lost.

    The loss is the mean divergence KL(expected | given): the logarithm of the growth of perplexity on text that the
    model itself wrote. What the model knows is the mean divergence of its distributions from their average. 0 means the
    same distributions, 1 is as bad as ignoring the context.
    """
    import torch

    probabilities = expected.exp()
    loss = (probabilities * (expected - given)).sum(-1).mean()
    average = probabilities.mean(0).clamp_min(1e-30).log()
    known = (probabilities * (expected - average)).sum(-1).mean()
    return float(loss / known) if torch.isfinite(loss) else float("nan")


def perplexity_ratio(expected: "Tensor", given: "Tensor") -> float:
    """Return perplexity over the perplexity of `expected`, on text that is sampled from `expected`."""
    return float((expected.exp() * (expected - given)).sum(-1).mean().exp())


def differences(
    expected: Sequence[Answer], given: Sequence[Answer], names: Sequence[str], *, tolerance: float = LOGPROB_TOLERANCE
) -> list[str]:
    """Return the differences of several answers, each with the name of its case."""
    pairs = zip(names, expected, given, strict=True)
    found = ((name, difference(one, other, tolerance=tolerance)) for name, one, other in pairs)
    return [f"{name}: {text}" for name, text in found if text is not None]
