"""Fixtures of the Hub's tests: small models, a stand-in that serves them, and the table of faults."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_machine import Machine, make_model
from support.hub_standin import HubStandin

BIG_BYTES = 40_000_000


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return the folder that the stand-in serves, with one small model, acme/tiny."""
    make_model(tmp_path / "models" / "acme" / "tiny")
    return tmp_path / "models"


@pytest.fixture
def hub(models: Path) -> Iterator[HubStandin]:
    """Run the stand-in for the Hub."""
    with HubStandin(models) as standin:
        yield standin
        assert not standin.leaks(), "a token was sent to the second origin"


@pytest.fixture(scope="session")
def _big_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("big") / "big", shard_bytes=BIG_BYTES, seed=1)


@pytest.fixture
def big(hub: HubStandin, _big_folder: Path) -> str:
    """Serve acme/big: one LFS file of 40 MB and the small files."""
    shutil.copytree(_big_folder, hub.root / "acme" / "big", copy_function=os.link)
    hub.reload()
    return "acme/big"


@pytest.fixture
def sharded(hub: HubStandin) -> str:
    """Serve acme/sharded: three shards of 2 MB."""
    make_model(hub.root / "acme" / "sharded", shards=3, shard_bytes=2_000_000, seed=2)
    hub.reload()
    return "acme/sharded"


@pytest.fixture
def machine(tmp_path: Path, hub: HubStandin) -> Machine:
    """Return a machine with its own folders."""
    (tmp_path / "home").mkdir()
    return Machine(tmp_path / "home", hub)


@pytest.fixture
def settle(hub: HubStandin) -> Callable[[dict[str, Any]], None]:
    """Write hub.json and let the stand-in read it."""

    def write(document: dict[str, Any]) -> None:
        (hub.root / "hub.json").write_text(json.dumps(document))
        hub.reload()

    return write


# -- the table of faults: `make faults` prints what the tests marked with `fault` and `plain` found


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of the table."""
    config.addinivalue_line("markers", "fault(row, must): llmctl against one fault; a row of the table")
    config.addinivalue_line("markers", "plain(row, does): hf download against the same fault, for comparison")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Attach the rows to the reports, which travel between processes; exclude the comparison from ordinary runs."""
    for item in items:
        for name in ("fault", "plain"):
            for mark in item.iter_markers(name):
                item.user_properties.append((name, list(mark.args)))
    if not os.environ.get("LLMCTL_FAULT_TABLE"):
        left_out = [item for item in items if item.get_closest_marker("plain")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("plain")]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if not os.environ.get("LLMCTL_FAULT_TABLE"):
        return
    rows: dict[str, dict[tuple[str, str], set[str]]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, value in getattr(report, "user_properties", []):
                if kind in ("fault", "plain"):
                    row, words = value
                    rows.setdefault(row, {}).setdefault((kind, words), set()).add(outcome)
    terminalreporter.section("faults")
    for row in sorted(rows):
        terminalreporter.write_line(row)
        for (kind, words), outcomes in sorted(rows[row].items()):
            name = "llmctl" if kind == "fault" else "hf"
            terminalreporter.write_line(f"  {name:7} {', '.join(sorted(outcomes)):8} {words}")
