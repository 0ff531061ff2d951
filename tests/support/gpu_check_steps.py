"""Steps for the check of a GPU that end in every way."""

import os
import time
from collections.abc import Iterator
from typing import Any

from llmctl.bench.gpu_check.workplace import SkippedError, Workplace


def good(workplace: Workplace) -> Iterator[dict[str, Any]]:
    yield {"process": os.getpid()}
    workplace.headline = "as it should be"


def wrong(_: Workplace) -> Iterator[dict[str, Any]]:
    yield {"sum": {"found": 5, "ok": False}, "process": os.getpid()}


def raises(_: Workplace) -> Iterator[dict[str, Any]]:
    yield {"before": 1}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def hangs(_: Workplace) -> Iterator[dict[str, Any]]:
    yield {"before": 1}
    time.sleep(60)


def crashes(_: Workplace) -> Iterator[dict[str, Any]]:
    yield {"before": 1}
    os.abort()


def skips(_: Workplace) -> Iterator[dict[str, Any]]:
    yield {}
    raise SkippedError("a package is missing")
