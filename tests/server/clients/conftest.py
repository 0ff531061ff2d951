"""SmolLM2 behind `llmctl serve`, for test suites of other clients (`make test-clients`)."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The Python of llmctl's environment; without it, these suites are not collected.
SERVER_PYTHON = os.environ.get("SERVER_PYTHON")
collect_ignore_glob = [] if SERVER_PYTHON else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Yield the URL of SmolLM2 in float32, so that scores do not depend on concurrent requests."""
    from support.served import served

    assert SERVER_PYTHON is not None
    with served("--model-name", "smollm2", "--dtype", "fp32", python=SERVER_PYTHON) as url:
        yield url
