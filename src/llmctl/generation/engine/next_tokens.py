"""The next tokens of the sequences of a pass: one by one on a CPU, all together on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError
from llmctl.generation.engine.sampler import Sampler, top_tokens
from llmctl.generation.logprobs import TokenLogprob, token_logprobs
from llmctl.generation.structured.constraint import StructureProcessor, keep_allowed
from llmctl.gpu.sampling import noise_key, sample_rows, to_device

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """One sequence whose next token is chosen.

    Attributes:
        sampler: Its sampler.
        ids: Its tokens so far.
        row: The row of its logits.
        logprobs: Number of top tokens whose log-probabilities are recorded; None for no log-probabilities.
    """

    sampler: Sampler
    ids: Sequence[int]
    row: int
    logprobs: int | None = None


def next_tokens(logits: "Tensor", choices: Sequence[Choice], *, together: bool) -> list[int | LlmctlError]:
    """Return the next token of each sequence, or its error: its structure has become too complex.

    Args:
        logits: [rows, vocabulary].
        together: Choose them with one chain of operations on the device of the logits.
    """
    if together:
        return _together(logits, choices)
    argmax = top_tokens(logits)
    tokens: list[int | LlmctlError] = []
    for one in choices:
        try:
            greedy = one.sampler.is_greedy
            tokens.append(argmax[one.row] if greedy else one.sampler.sample(one.ids, logits[one.row].float()))
        except LlmctlError as error:
            tokens.append(error)
    return tokens


def logprobs_of(
    logits: "Tensor", choices: Sequence[Choice], tokens: Sequence[int | LlmctlError], *, together: bool
) -> list[TokenLogprob | None]:
    """Return the log-probability of each token, for the sequences that record them."""
    found: list[TokenLogprob | None] = [None] * len(choices)
    wanted = [
        (n, one.row, token, one.logprobs)
        for n, (one, token) in enumerate(zip(choices, tokens, strict=True))
        if one.logprobs is not None and isinstance(token, int)
    ]
    for part in [wanted] if together and wanted else [[one] for one in wanted]:
        most = max(top for *_, top in part)
        scored = token_logprobs(logits[[row for _, row, _, _ in part]], [token for _, _, token, _ in part], most)
        for (n, _, _, top), one in zip(part, scored, strict=True):
            found[n] = TokenLogprob(one.id, one.logprob, one.top[:top])
    return found


def _together(logits: "Tensor", choices: Sequence[Choice]) -> list[int | LlmctlError]:
    import torch

    errors: dict[int, LlmctlError] = {}
    argmax = logits.argmax(-1)
    others = [one for one in choices if not one.sampler.is_greedy]
    if others:
        rows = to_device(torch.tensor([one.row for one in others]), logits.device)
        scores = _processed(logits.index_select(0, rows).float(), others, errors)
        argmax.index_copy_(0, rows, _chosen(scores, others))
    tokens: list[int] = argmax.tolist()  # the only wait for the device
    return [errors.get(one.row, tokens[one.row]) for one in choices]


def _chosen(scores: "Tensor", choices: Sequence[Choice]) -> "Tensor":
    """Return the token of each row of processed scores."""
    import torch

    tokens = scores.argmax(-1)
    sampled = [n for n, one in enumerate(choices) if one.sampler.samples]
    if not sampled:
        return tokens
    rows = to_device(torch.tensor(sampled), scores.device)
    samplers = [choices[n].sampler for n in sampled]
    keys = [noise_key(choices[n].sampler.seed, len(choices[n].ids)) for n in sampled]
    part = scores if len(sampled) == len(choices) else scores.index_select(0, rows)
    return tokens.index_copy_(0, rows, sample_rows(part, [one.warping for one in samplers], keys))


def _processed(scores: "Tensor", choices: Sequence[Choice], errors: dict[int, LlmctlError]) -> "Tensor":
    """Apply penalties and structures to the scores of each sequence.

    The masks of structures that come last are brought to the device together.

    Args:
        errors: Receives the errors by the row of the logits.
    """
    import torch

    masked: list[int] = []
    masks: list[Tensor] = []
    for n, one in enumerate(choices):
        processors = list(one.sampler.processors or ())
        structure = processors.pop() if processors and isinstance(processors[-1], StructureProcessor) else None
        try:
            if processors:
                ids = to_device(torch.tensor([one.ids]), scores.device)
                scores[n] = _apply(processors, ids, scores[n : n + 1].clone())[0]
            mask = structure.allowed_after(one.ids, scores.shape[-1]) if structure is not None else None
        except LlmctlError as error:
            errors[one.row] = error
            continue
        if mask is not None:
            masked.append(n)
            masks.append(mask)
    if masks:
        rows = to_device(torch.tensor(masked), scores.device)
        allowed = to_device(torch.stack(masks), scores.device)
        scores.index_copy_(0, rows, keep_allowed(scores.index_select(0, rows), allowed))
    return scores


def _apply(processors: Sequence[Any], ids: "Tensor", scores: "Tensor") -> "Tensor":
    for processor in processors:
        scores = processor(ids, scores)
    return scores
