"""What is to be measured, and how figures of several runs are put together."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One situation: prompts of so many tokens, and so many of them at a time."""

    prompt_tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.prompt_tokens} x {self.batch}"


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        prompt_tokens: Lengths of the prompts.
        batches: How many sequences at a time.
        new_tokens: Tokens that are generated for each prompt; nothing ends an answer earlier.
        runs: Fresh processes for each configuration.
        seed: What the prompts are drawn with. Every configuration and every run reads the same ones.
    """

    prompt_tokens: tuple[int, ...] = (64, 512)
    batches: tuple[int, ...] = (1, 8)
    new_tokens: int = 32
    runs: int = 3
    seed: int = 42

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every situation, one sequence at a time first."""
        return tuple(Cell(length, batch) for batch in self.batches for length in self.prompt_tokens)

    @property
    def context(self) -> int:
        """The most tokens of one sequence."""
        return max(self.prompt_tokens) + self.new_tokens


QUICK = Task(prompt_tokens=(64,), batches=(1,), new_tokens=16, runs=1)


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing. With `count` 1 they are one and the same, and say nothing of the spread."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, least and most; None where nothing was measured."""
    found = [value for value in values if value is not None]
    return Spread(statistics.median(found), min(found), max(found), len(found)) if found else None
