"""The prompts of the checks. Token ids are below those that a tiny configuration uses as marks of images."""

import random
from collections.abc import Sequence

from support.architectures.sizes import WINDOW

Ids = tuple[int, ...]
_CHANCE_SEED = 11


def _random(count: int, seed: int) -> Ids:
    chance = random.Random(f"{_CHANCE_SEED} {seed}")
    return tuple(chance.randrange(5, 250) for _ in range(count))


# From a few tokens to many times every window, chunk and convolution. Two prompts end shortly before 64 tokens, so that
# their answers pass that number: longrope types change their frequencies there.
PROMPTS: tuple[Ids, ...] = (
    _random(3, 0),
    _random(WINDOW + 1, 1),
    _random(58, 2),
    _random(90, 3),
    _random(200, 4),
)


def followers(prompts: Sequence[Ids], answers: Sequence[Ids]) -> dict[str, Ids]:
    """Return prompts that share a beginning with the last two prompts, by the name of the case."""
    shorter, longest = prompts[-2:]
    return {
        "the same prompt": shorter,
        "the same long prompt": longest,
        "an earlier prompt and its answer, extended": (*shorter, *answers[-2], *_random(9, 5)),
        "a prompt that diverges inside a page": (*longest[: len(longest) // 2 + 9], *_random(20, 6)),
        "the beginning of an earlier prompt": longest[: len(longest) * 2 // 3],
        "a prompt that diverges inside its first page": (*shorter[:7], *_random(30, 7)),
    }
