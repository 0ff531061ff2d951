"""The task of a benchmark, and the statistics over several runs."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

ONE_BY_ONE = "generate, one after the other"  # how several sequences are answered if they cannot be packed


@dataclass(frozen=True)
class Cell:
    """One cell of the task: the length of the prompts and the number of sequences at a time."""

    prompt_tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.prompt_tokens} x {self.batch}"


@dataclass(frozen=True)
class Task:
    """The cells to measure.

    Attributes:
        prompt_tokens: Lengths of the prompts.
        batches: Numbers of sequences at a time.
        new_tokens: Tokens generated for each prompt; nothing ends an answer earlier.
        runs: Fresh processes for each configuration.
        seed: Seed of the prompts, which are the same for every configuration and every run.
    """

    prompt_tokens: tuple[int, ...] = (64, 512)
    batches: tuple[int, ...] = (1, 8)
    new_tokens: int = 32
    runs: int = 3
    seed: int = 42

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, one sequence at a time first."""
        return tuple(Cell(length, batch) for batch in self.batches for length in self.prompt_tokens)

    @property
    def context(self) -> int:
        """The largest number of tokens of one sequence."""
        return max(self.prompt_tokens) + self.new_tokens


QUICK = Task(prompt_tokens=(64,), batches=(1,), new_tokens=16, runs=1)


@dataclass(frozen=True)
class Spread:
    """The median, minimum and maximum of several measurements. With `count` 1 they are equal."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values; None where nothing was measured."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None
