"""The same faults against `hf download`, for comparison: what its users meet today. Run by `make faults`.

These tests say what huggingface_hub 2.4 does. One that fails is good news: that row has been mended upstream.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from support.hub_machine import HF, Machine, interrupt
from support.hub_standin import HubStandin

plain = pytest.mark.plain
CDN = r"cdn:/cdn/"
REVISION = r"/revision/"
Settle = Callable[[dict[str, Any]], None]


@plain("One 503 or 429 on the revision call", "not tried again")
@pytest.mark.parametrize("status", [503, 429])
def test_hf_does_not_wait_for_a_busy_hub(machine: Machine, hub: HubStandin, status: int) -> None:
    hub.fault(REVISION, status=status, headers={"Retry-After": "1"})
    assert machine.run("download", "acme/tiny", program=HF).code != 0
    assert len(hub.asked(REVISION)) == 1


@plain("Server accepts, never answers (revision, whoami)", "hangs past its time-out of 2 s")
def test_hf_hangs_with_a_silent_hub(machine: Machine, hub: HubStandin) -> None:
    hub.fault(REVISION, "hang", seconds=60, times=-1)
    process = machine.start("download", "acme/tiny", program=HF)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=12)
    process.kill()
    process.communicate()


@plain("Captive portal: 200 with HTML", "a JSONDecodeError")
def test_hf_parses_a_captive_portal_as_json(machine: Machine, hub: HubStandin) -> None:
    hub.fault(".*", "html", times=-1)
    done = machine.run("download", "acme/tiny", program=HF)
    assert done.code != 0
    assert "web page" not in done.err


@plain("Connection closed every 9 MB", "starts from zero each time, then fails")
def test_hf_gives_up_when_the_connection_closes_every_9_mb(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "drop", after=9_000_000, times=-1)
    assert machine.run("download", big, program=HF).code != 0
    assert not [e for e in hub.asked("/cdn/") if e["range"]]


@plain("TCP reset in the body", "not tried again")
def test_hf_does_not_resume_after_a_reset(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "rst", after=20_000_000)
    assert machine.run("download", big, program=HF).code != 0


@plain("5xx, 403 (signed URL expired) or 416 on the file", "not tried again")
@pytest.mark.parametrize("status", [500, 403, 416])
def test_hf_does_not_ask_for_a_refused_file_again(machine: Machine, hub: HubStandin, big: str, status: int) -> None:
    hub.fault(CDN, status=status)
    assert machine.run("download", big, program=HF).code != 0


@plain("Short body whose length agrees", "not tried again")
def test_hf_does_not_complete_a_short_answer(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "short", by=1000)
    assert machine.run("download", big, program=HF).code != 0


@plain("One byte flipped", "success, with a wrong byte in the cache; a rerun too")
def test_hf_accepts_a_flipped_byte(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "corrupt", at=20_000_000)
    assert machine.run("download", big, program=HF).code == 0
    assert machine.run("download", big, program=HF).code == 0
    assert not machine.is_whole(big)


@plain("Cached blob damaged or truncated later", "a rerun reports success")
def test_hf_does_not_see_damage(machine: Machine) -> None:
    machine.run("download", "acme/tiny", program=HF)
    blob = next(machine.repo("acme/tiny").rglob("model.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1000])
    assert machine.run("download", "acme/tiny", program=HF).code == 0
    assert not machine.is_whole("acme/tiny")


@plain("kill -9 three times, rerun", "starts from zero each time, an orphan left each time")
def test_hf_starts_over_after_each_kill(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=20_000_000, times=2)
    for kill in range(2):
        process = machine.start("download", big, program=HF)
        machine.wait_for_bytes((kill + 1) * 10_000_000)
        process.kill()
        process.communicate()
    assert machine.run("download", big, program=HF).code == 0
    assert not [e for e in hub.asked("/cdn/") if e["range"]]
    assert len(machine.partials()) == 2


@plain("Ctrl-C", "waits for the files in flight")
def test_hf_waits_for_files_after_ctrl_c(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=10_000_000, times=-1)
    process = machine.start("download", big, program=HF)
    time.sleep(2.5)
    done = interrupt(process, signal.SIGINT)
    assert done.seconds > 1


@plain("Disk full", "a warning, then the error of the system")
def test_hf_starts_a_download_that_cannot_fit(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"sizes": {"model.safetensors": 10**13}}}})
    done = machine.run("download", "acme/tiny", program=HF)
    assert done.code != 0
    assert hub.asked("/resolve/"), "it asked for the files all the same"


@plain("Lock holder frozen", "waits for ever and prints nothing")
def test_hf_waits_for_a_frozen_holder_in_silence(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=5_000_000, times=-1)
    holder = machine.start("download", big, program=HF)
    time.sleep(3)
    holder.send_signal(signal.SIGSTOP)
    waiting = machine.start("download", big, program=HF)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(timeout=8)
    finally:
        for process in (holder, waiting):
            process.kill()
        _, err = waiting.communicate()
        holder.communicate()
    assert str(holder.pid) not in err


@plain("Only config.json cached, then offline or 503", "the rest of the set is not missed")
def test_hf_reports_a_partial_download_as_success(machine: Machine) -> None:
    script = "import sys; from transformers import AutoConfig; AutoConfig.from_pretrained('acme/tiny')"
    import sys

    assert machine.run("-c", script, program=sys.executable).code == 0
    done = machine.run("download", "acme/tiny", program=HF, HF_HUB_OFFLINE="1")
    assert done.code == 0


@plain("Wrong token", "does not say where the token came from")
def test_hf_does_not_name_the_source_of_a_wrong_token(machine: Machine) -> None:
    done = machine.run("download", "acme/tiny", program=HF, HF_TOKEN="hf_bad")
    assert done.code != 0
    assert "HF_TOKEN" not in done.err
