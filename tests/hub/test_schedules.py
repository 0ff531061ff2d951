"""Random schedules of faults, kills and reruns: whatever happens, the cache never holds a wrong byte.

Four schedules run by default; `LLMCTL_SCHEDULES=200` (make faults) runs them all. A schedule is its seed, so one
that fails can be run again: `pytest tests/hub/test_schedules.py -k 'seed-17'`.
"""

import hashlib
import os
import random
import signal
import subprocess
from typing import Any

import pytest

from support.hub_machine import Machine
from support.hub_standin import HubStandin, git_blob_sha1

SCHEDULES = int(os.environ.get("LLMCTL_SCHEDULES", "4"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
ENDED = {0, 3, 4, 130, 143}
# What a signal does to Python itself, before the command has begun or after it has ended.
CUT = {-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
PLACES = (r"cdn:/cdn/", r"/resolve/", r"/resolve-cache/", r"/revision/", r".*")


def _random_fault(choice: random.Random) -> dict[str, Any]:
    """Return a random fault of the stand-in, anywhere, once or a few times."""
    at = choice.randrange(0, 2_000_000)
    kinds: list[dict[str, Any]] = [
        {"action": "status", "status": choice.choice([403, 416, 429, 500, 502, 503])},
        {"action": "status", "status": 429, "headers": {"Retry-After": "1"}},
        {"action": "hang", "seconds": 2},
        {"action": "refuse", "rst": choice.random() < 0.5},
        {"action": "html"},
        {"action": "drop", "after": at},
        {"action": "rst", "after": at},
        {"action": "stall", "after": at, "seconds": 2},
        {"action": "corrupt", "at": at},
        {"action": "short", "by": choice.randrange(1, 100_000)},
        {"action": "ignore_range"},
        {"action": "no_length"},
        {"action": "throttle", "rate": choice.choice([2_000_000, 8_000_000])},
    ]
    fault = choice.choice(kinds)
    place = choice.choice(PLACES if fault["action"] in ("status", "hang", "refuse", "html") else PLACES[:1])
    return {"path": place, "times": choice.choice([1, 1, 1, 2, 4]), "skip": choice.randrange(0, 4), **fault}


def _run(machine: Machine, repo_id: str, choice: random.Random) -> int:
    """Run one download, which may be interrupted."""
    process = machine.start("download", repo_id, "--retries", "3", HF_HUB_DOWNLOAD_TIMEOUT="1", HF_TOKEN="hf_good")
    cut = choice.random() < 0.5
    try:
        _, err = process.communicate(timeout=choice.uniform(0.2, 2.0) if cut else 60)
    except subprocess.TimeoutExpired:
        process.send_signal(choice.choice(SIGNALS))
        _, err = process.communicate(timeout=10)
    assert process.returncode in ENDED | CUT, f"exit code {process.returncode}\n{err}"
    assert "Traceback" not in err or process.returncode in CUT, err
    return process.returncode


def _check_blobs(machine: Machine, repo_id: str) -> set[str]:
    """Check that every complete blob has the hash in its name, and return the names."""
    names = set()
    for blob in (machine.repo(repo_id) / "blobs").glob("*"):
        if "incomplete" in blob.name:
            continue
        is_large = len(blob.name) == 64
        digest = hashlib.sha256(blob.read_bytes()).hexdigest() if is_large else git_blob_sha1(blob)
        assert digest == blob.name, "a wrong byte is in the cache"
        names.add(blob.name)
    return names


@pytest.mark.parametrize("seed", range(SCHEDULES), ids=lambda seed: f"seed-{seed}")
def test_any_schedule_ends_well(machine: Machine, hub: HubStandin, sharded: str, seed: int) -> None:
    choice = random.Random(seed)
    for _ in range(choice.randrange(1, 6)):
        hub.fault(**_random_fault(choice))
    for _ in range(choice.randrange(1, 4)):
        code = _run(machine, sharded, choice)
        _check_blobs(machine, sharded)
        if code == 0:
            assert machine.is_whole(sharded)
    assert not hub.leaks()

    hub.clear()
    clean = machine.run("download", sharded)
    assert clean.code == 0, clean.err
    assert machine.is_whole(sharded)
    files = hub.repos[sharded].files.values()
    expected = {f.get("sha256") or f["oid"] for f in files if f["path"] != "README.md"}
    assert _check_blobs(machine, sharded) == expected
    dotted = list(machine.repo(sharded).rglob(".*"))
    assert not dotted, "an orphan was left behind"
    assert machine.run("download", sharded, "--verify", "--offline").code == 0
