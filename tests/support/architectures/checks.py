"""The checks of one architecture: a tiny checkpoint in llmctl, compared with plain transformers."""

import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from support.architectures.build import CannotBuildError, build
from support.architectures.prompts import PROMPTS, Ids, followers
from support.architectures.reference import (
    LOGPROB_TOLERANCE,
    LOGPROB_TOLERANCE_OF_MODULES,
    NEW_TOKENS,
    NO_TOKEN,
    Answer,
    Reference,
    context_logprobs,
    differences,
    lost_information,
    one_pass_answers,
    perplexity_ratio,
    plain_reference,
)

# A model in fewer bits may lose this many times what plain transformers loses with rounded weights and activations,
# and 0.02 more. A layer that is quantised wrongly loses far more.
MAX_LOSS_RATIO = 1.5
MAX_BYTES_ERROR = 0.02


@dataclass
class Outcome:
    """The results of one architecture.

    Attributes:
        cells: The result of each column: `yes`, `no` (not supported), `WRONG`, `ERROR`, or empty if not checked.
        notes: Reasons, by column.
        figures: Measured numbers, by column.
    """

    model_type: str
    is_composite: bool
    cells: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def set(self, column: str, cell: str, note: str = "") -> None:
        """Set a cell with its reason."""
        self.cells[column] = cell
        if note:
            self.notes[column] = " ".join(note.split())[:300]

    def document(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return asdict(self)


class Stop(Exception):  # noqa: N818 (not an error: nothing further can be checked)
    """The rest of the checks cannot be made."""


@dataclass(frozen=True)
class Scope:
    """The prompts and the loads of a check."""

    prompts: tuple[Ids, ...] = PROMPTS
    columns: tuple[str, ...] = ("bfloat16", "8 bits", "4 bits")
    is_brief: bool = False


FULL = Scope()
BRIEF = Scope(PROMPTS[2:4], ("4 bits",), is_brief=True)


def check(
    model_type: str,
    *,
    is_composite: bool,
    folder: Path | None = None,
    scope: Scope = FULL,
) -> Outcome:
    """Build and check one architecture, in a temporary folder or in one to keep."""
    outcome = Outcome(model_type, is_composite)
    with tempfile.TemporaryDirectory() as temporary, suppress(Stop):
        _check(outcome, (folder or Path(temporary)) / model_type, scope)
    return outcome


def _check(outcome: Outcome, folder: Path, scope: Scope) -> None:
    is_composite = outcome.is_composite
    with _guard(outcome, "built"):
        build(outcome.model_type, folder, is_composite=is_composite)
    with _guard(outcome, "transformers", stops=False):
        reference = plain_reference(folder, scope.prompts, scope.columns, is_composite=is_composite)
    if outcome.cells["transformers"] != "yes":
        _check_refusal(outcome, folder)
    with _guard(outcome, "loads"):
        loaded = _load(folder, dtype="float32")
    _check_bytes(outcome, "float32", loaded)
    with _guard(outcome, "answers"):
        alone = [_alone(loaded, prompt) for prompt in scope.prompts]
        wrong = differences(reference.answers, alone, _names(scope.prompts))
        if wrong:
            expected = one_pass_answers(folder, scope.prompts, alone, is_composite=is_composite)
            wrong = wrong if differences(expected, alone, _names(scope.prompts)) else []
        _judge(outcome, "answers", wrong)
    _check_engine(outcome, loaded, alone, scope)
    del loaded
    for column in scope.columns:
        _check_quality(outcome, column, folder, reference)


def _check_refusal(outcome: Outcome, folder: Path) -> None:
    """Check that llmctl refuses a model with which transformers itself cannot continue a text."""
    outcome.set("transformers", "no", outcome.notes.pop("transformers"))
    with _guard(outcome, "loads"):
        loaded = _load(folder, dtype="float32")
    with _guard(outcome, "answers"):
        _alone(loaded, PROMPTS[0])
    raise Stop


@contextmanager
def _guard(outcome: Outcome, column: str, *, stops: bool = True) -> Iterator[None]:
    """Turn an exception into a cell: `no` for an error with advice, ERROR for any other. `yes` if nothing is set."""
    from llmctl.errors import LlmctlError

    try:
        yield
    except LlmctlError as error:
        outcome.set(column, "no", str(error))
    except CannotBuildError as reason:
        outcome.set(column, "no", str(reason))
    except Exception as error:  # noqa: BLE001 (any exception is a result)
        outcome.set(column, "ERROR", f"{type(error).__name__}: {error} ({_place(error)})")
    else:
        outcome.cells.setdefault(column, "yes")
        return
    if stops:
        raise Stop


def _place(error: Exception) -> str:
    """Return the last line of a traceback: file and line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _names(prompts: Sequence[Ids]) -> list[str]:
    return [f"a prompt of {len(prompt)} tokens" for prompt in prompts]


def _judge(outcome: Outcome, column: str, wrong: Sequence[str]) -> None:
    outcome.set(column, "WRONG" if wrong else "yes", "; ".join(wrong))


def _load(folder: Path, *, dtype: str, bits: int | None = None) -> Any:
    import llmctl

    quantization = {} if bits is None else {"quantization": {"bits": bits, "cache": False}}
    return llmctl.load(folder, load={"dtype": dtype}, offline=True, **quantization)


def _check_bytes(outcome: Outcome, column: str, loaded: Any) -> None:
    """Compare the planned bytes of the weights with the loaded ones.

    Buffers that are no weights, such as tables of positions and masks, are small beside real weights, not beside tiny.
    """
    planned = sum(loaded.plan.memory.weights.values())
    tables = {
        module.get_buffer(name).data_ptr(): module.get_buffer(name).nbytes
        for module in loaded.model.modules()
        for name in module._non_persistent_buffers_set
        if getattr(module, name, None) is not None
    }
    found = sum(loaded.measured.device_bytes.values()) - sum(tables.values())
    error = planned / found - 1
    outcome.figures[f"bytes {column}"] = round(error, 4)
    if abs(error) > MAX_BYTES_ERROR:
        known = outcome.notes.get("bytes")
        note = f"{column}: planned {planned:,} loaded {found:,} ({error:+.1%})"
        outcome.set("bytes", "WRONG", f"{known}; {note}" if known else note)
    outcome.cells.setdefault("bytes", "yes")


# -- answers


def _request(loaded: Any, prompt: Ids) -> Any:
    """Return a greedy request that ends at its token limit, whatever the model generates."""
    from llmctl.generation.prompt import Prompt
    from llmctl.generation.request import make_request

    request = make_request(loaded, Prompt(prompt), seed=0, max_new_tokens=NEW_TOKENS)
    return replace(request, arguments={**request.arguments, "eos_token_id": [NO_TOKEN]}, logprobs=0)


def _answer(completion: Any) -> Answer:
    from llmctl.errors import LlmctlError

    if isinstance(completion, LlmctlError):
        raise completion
    return Answer(tuple(completion.token_ids), tuple(one.logprob for one in completion.logprobs))


def _alone(loaded: Any, prompt: Ids) -> Answer:
    from llmctl.generation.stream import stream_request

    chunks = stream_request(loaded, _request(loaded, prompt))
    return _answer(next(chunk.completion for chunk in chunks if chunk.completion is not None))


def _together(engine: Any, prompts: Sequence[Ids]) -> list[Answer]:
    answers = dict(engine.run((number, _request(engine.loaded, ids)) for number, ids in enumerate(prompts)))
    return [_answer(answers[number]) for number in range(len(prompts))]


def _check_engine(outcome: Outcome, loaded: Any, alone: Sequence[Answer], scope: Scope) -> None:
    """Compare a batch, requests that arrive one after the other, cached prefixes and a chat with answers alone."""
    from llmctl.generation.engine import engine_for_chat, engine_for_many
    from llmctl.generation.engine.packable import why_not_packed

    prompts, names = scope.prompts, _names(scope.prompts)
    with _guard(outcome, "packed", stops=False):
        engine = engine_for_many(loaded)
        is_packed = engine.token_limit(_request(loaded, prompts[0])) is not None
        wrong = differences(alone, _together(engine, prompts), names)
        if not scope.is_brief:
            wrong += differences(alone, _arriving(engine_for_many(loaded), prompts), names)
        reason = "" if is_packed else why_not_packed(loaded) or ""
        outcome.set("packed", "WRONG" if wrong else "yes" if is_packed else "no", "; ".join(wrong) or reason)
        later = followers(prompts, [answer.ids for answer in alone])
        later = dict(list(later.items())[2:4]) if scope.is_brief else later
        expected = [_alone(loaded, prompt) for prompt in later.values()]
    if outcome.cells["packed"] == "ERROR":
        return
    with _guard(outcome, "prefix cache", stops=False):
        before = engine.prefilled_tokens
        given = [_together(engine, [prompt])[0] for prompt in later.values()]
        is_used = engine.prefilled_tokens - before < sum(map(len, later.values()))
        wrong = differences(expected, given, list(later))
        outcome.set("prefix cache", "WRONG" if wrong else "yes" if is_used else "no", "; ".join(wrong))
    if scope.is_brief:
        return
    with _guard(outcome, "chat", stops=False):
        chat = engine_for_chat(loaded)
        given = [_together(chat, [prompt])[0] for prompt in (prompts[-2], *later.values())]
        _judge(outcome, "chat", differences([alone[-2], *expected], given, ["the first prompt", *later]))


def _arriving(engine: Any, prompts: Sequence[Ids]) -> list[Answer]:
    """Return the answers to prompts that arrive at a running engine, as a server's do. One more is cancelled."""
    found: dict[Any, Any] = {}

    def step() -> None:
        found.update({event.key: event.end for event in engine.step() if event.end is not None})

    for number, prompt in enumerate(prompts):
        engine.add(number, _request(engine.loaded, prompt))
        if number == 1:
            engine.add("cancelled", _request(engine.loaded, prompts[-1][50:]))
        for _ in range(3):
            step()
        if number == 1:
            engine.cancel("cancelled")
    while engine.is_busy:
        step()
    return [_answer(found[number]) for number in range(len(prompts))]


# -- quality


def _check_quality(outcome: Outcome, column: str, folder: Path, reference: Reference) -> None:
    """Compare the distributions of a model in fewer bits with those in float32, and its batch with answers alone."""
    from llmctl.cpu.program import compiled
    from llmctl.generation.engine import engine_for_many

    with _guard(outcome, column, stops=False):
        loaded = _load(folder, dtype="bfloat16", bits=None if column == "bfloat16" else int(column.split()[0]))
        _check_bytes(outcome, column, loaded)
        given = context_logprobs(loaded.model)
        lost = lost_information(reference.logprobs, given)
        outcome.figures[column] = round(perplexity_ratio(reference.logprobs, given), 4)
        outcome.figures[f"lost {column}"] = round(lost, 5)
        outcome.figures[f"lost by rounding to {column}"] = round(reference.lost[column], 5)
        wrong = _is_lost(column, reference, lost)
        several = PROMPTS[2:4]
        alone = [_alone(loaded, prompt) for prompt in several]
        engine = engine_for_many(loaded)
        is_compiled = compiled(loaded.model) is not None
        tolerance = LOGPROB_TOLERANCE if is_compiled else LOGPROB_TOLERANCE_OF_MODULES
        given = differences(alone, _together(engine, several), _names(several), tolerance=tolerance)
        wrong += [f"packed: {one}" for one in given]
        outcome.set(column, "WRONG" if wrong else "yes", "; ".join(wrong))
        outcome.cells.setdefault("compiled", "yes" if is_compiled else "no")


def _is_lost(column: str, reference: Reference, lost: float) -> list[str]:
    """Return a loss that rounding does not explain."""
    expected = sum(reference.lost.get(name, 0.0) for name in {column, "bfloat16"})
    if lost <= MAX_LOSS_RATIO * expected + 0.02:
        return []
    return [f"{lost:.0%} of what the model knows from the context is lost, rounding alone loses {expected:.0%}"]
