"""References for the engine: `model.generate` on the same device, and logits in float32 on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import Completion
from llmctl.generation.engine import Engine
from llmctl.generation.request import NO_TOKEN

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.generation.request import Request

# Two tokens are a near tie if their logits in float32 differ by less than this share of the logits' spread: half
# precision may choose either. Random logits have their maximum at about three times the spread.
_NEAR_TIE = 0.2
# Mean difference of log-probabilities, as a share of that spread. In bfloat16 on a CPU it is 0.007 to 0.015; a window
# that is a token too short makes it 0.08 and more.
_ROUNDING = 0.04


class Reference:
    """The model of a folder in float32 on the CPU, in plain transformers."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()

    def logits(self, ids: Sequence[int], *, start: int) -> "Tensor":
        """Return the logits that predict the tokens from `start` on."""
        import torch

        with torch.no_grad():
            logits: Tensor = self._model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
        return logits


def completions(engine: Engine, requests: "Sequence[Request]") -> list[Completion]:
    """Return the answers in the order of the requests. Raise the error of one that failed."""
    found = dict(engine.run(enumerate(requests)))
    answers = []
    for number in range(len(requests)):
        answer = found[number]
        if not isinstance(answer, Completion):
            raise answer
        answers.append(answer)
    return answers


def plain_answers(model: Any, requests: "Sequence[Request]") -> list[tuple[int, ...]]:
    """Return the greedy tokens of `model.generate`, one request after the other."""
    import torch
    from transformers import GenerationConfig

    answers = []
    for request in requests:
        ids = torch.tensor([request.prompt.ids], device=model.device)
        config = GenerationConfig(
            max_new_tokens=request.budget, do_sample=False, eos_token_id=[NO_TOKEN], pad_token_id=0
        )
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        answers.append(tuple(output[0, ids.shape[1] :].tolist()))
    return answers


def compared(
    reference: Reference,
    requests: "Sequence[Request]",
    expected: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Compare tokens; where two answers part, the two tokens have to be a near tie in float32."""
    parted = []
    for request, ours, theirs in zip(requests, found, expected, strict=True):
        place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            continue
        ids = [*request.prompt.ids, *ours[: place + 1]]
        row = reference.logits(ids, start=len(ids) - 1)[0]
        parted.append(float((row[ours[place]] - row[theirs[place]]).abs() / row.std()))
    largest = max(parted, default=0.0)
    same = len(found) - len(parted)
    return {"same": same, "of": len(found), "largest_difference": round(largest, 3), "ok": largest <= _NEAR_TIE}


def logprob_differences(reference: Reference, answers: Sequence[Completion]) -> dict[str, Any]:
    """Compare the recorded log-probabilities of greedy answers with those in float32."""
    import torch

    differences, spread = [], 0.0
    for answer in answers:
        rows = reference.logits([*answer.prompt.ids, *answer.token_ids], start=len(answer.prompt))
        spread = max(spread, float(rows.std()))
        exact = rows.log_softmax(-1)[torch.arange(len(rows)), torch.tensor(answer.token_ids)]
        recorded = torch.tensor([scored.logprob for scored in answer.logprobs or ()])
        differences.append((recorded - exact).abs())
    every = torch.cat(differences)
    mean, largest = float(every.mean()), float(every.max())
    return {
        "mean_difference": round(mean, 4),
        "largest_difference": round(largest, 4),
        "spread_of_logits": round(spread, 3),
        "ok": mean <= _ROUNDING * spread,
    }


def share_of_same(expected: Sequence[Completion], found: Sequence[Completion], *, least: float) -> dict[str, Any]:
    """Count answers with the same tokens.

    Args:
        least: Share of same answers that is good.
    """
    same = sum(a.token_ids == b.token_ids for a, b in zip(expected, found, strict=True))
    return {"same": same, "of": len(expected), "ok": same >= least * len(expected)}
