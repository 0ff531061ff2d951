from collections.abc import Iterator

import pytest

import llmctl.cpu.kernels
from llmctl.cpu.kernels import Kernels

FOUND = llmctl.cpu.kernels.load()


@pytest.fixture(params=FOUND.usable if FOUND else ["none"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Return the kernels for each instruction set that can run here."""
    if FOUND is None:
        pytest.skip(str(llmctl.cpu.kernels.missing()))
    before = FOUND.isa
    FOUND.use(request.param)
    yield FOUND
    FOUND.use(before)


@pytest.fixture
def best() -> Kernels:
    """Return the kernels that llmctl uses here."""
    if FOUND is None:
        pytest.skip(str(llmctl.cpu.kernels.missing()))
    return FOUND
