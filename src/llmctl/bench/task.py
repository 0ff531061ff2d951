"""The task of a benchmark, and the statistics over several runs."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

ONE_BY_ONE = "generate, one after the other"  # the value of `through` if several sequences cannot be packed


@dataclass(frozen=True)
class Cell:
    """One cell of the task: the prompt length and the number of concurrent sequences."""

    prompt_tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.prompt_tokens} x {self.batch}"


@dataclass(frozen=True)
class Task:
    """The cells to measure.

    Attributes:
        prompt_tokens: Prompt lengths.
        batches: Numbers of concurrent sequences.
        new_tokens: Tokens generated for each prompt; answers never end earlier.
        runs: Number of processes for each configuration.
        seed: Seed of the prompts, which are equal for every configuration and every run.
    """

    prompt_tokens: tuple[int, ...] = (64, 512)
    batches: tuple[int, ...] = (1, 8)
    new_tokens: int = 32
    runs: int = 3
    seed: int = 42

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order of `batches`."""
        return tuple(Cell(length, batch) for batch in self.batches for length in self.prompt_tokens)

    @property
    def context(self) -> int:
        """The maximum tokens of one sequence."""
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
    """Return the spread of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None
