"""Downloads with faults of every kind, through the real command line."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.hub_machine import LLMCTL, Machine, interrupt
from support.hub_standin import HubStandin

fault = pytest.mark.fault
CDN = r"cdn:/cdn/"
REVISION = r"/revision/"
Settle = Callable[[dict[str, Any]], None]


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@fault("Connection refused, empty cache", "exit 4 in one line, at once")
def test_a_refused_connection_is_one_line(machine: Machine) -> None:
    done = machine.run("download", "acme/tiny", HF_ENDPOINT=f"http://127.0.0.1:{_closed_port()}")
    assert done.code == 4
    assert "cannot reach 127.0.0.1" in done.err
    assert len(done.err.splitlines()) <= 3


@fault("Connection refused, empty cache", "the proxy is named, its password is not")
def test_a_proxy_that_is_set_is_named(machine: Machine) -> None:
    port = _closed_port()
    proxy = {"HTTP_PROXY": f"http://me:secret@127.0.0.1:{port}", "NO_PROXY": "", "no_proxy": ""}
    done = machine.run("download", "acme/tiny", **proxy)
    assert done.code == 4
    assert f"http://127.0.0.1:{port}" in done.err
    assert "secret" not in done.err


@fault("One 503 or 429 on the revision call", "retried, Retry-After honoured and said")
@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_hub_is_waited_for(machine: Machine, hub: HubStandin, status: int) -> None:
    hub.fault(REVISION, status=status, headers={"Retry-After": "1"})
    done = machine.run("download", "acme/tiny")
    assert done.code == 0, done.err
    assert "waiting 1 s" in done.err
    assert ("rate limited" in done.err) == (status == 429)
    first, second = hub.asked(REVISION)
    assert second["t"] - first["t"] >= 1


@fault("One 503 or 429 on the revision call", "a wait that is too long is refused with its length")
def test_a_rate_limit_of_an_hour_is_an_error(machine: Machine, hub: HubStandin) -> None:
    hub.fault(REVISION, status=429, headers={"Retry-After": "3600"}, times=-1)
    done = machine.run("download", "acme/tiny", "--json")
    assert done.code == 4
    assert done.document["error"]["kind"] == "rate_limited"
    assert "3600 s" in done.err


@fault("Server accepts, never answers (revision, whoami)", "times out, retries, goes on or exits 4")
def test_a_silent_hub_times_out_and_is_asked_again(machine: Machine, hub: HubStandin) -> None:
    hub.fault(REVISION, "hang", seconds=600)  # longer than the test waits for the command
    done = machine.run("download", "acme/tiny", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.code == 0, done.err


@fault("Server accepts, never answers (revision, whoami)", "exit 4 with the number of seconds")
@pytest.mark.parametrize("command", [("download", "acme/tiny"), ("whoami",)])
def test_a_hub_that_stays_silent_is_given_up(machine: Machine, hub: HubStandin, command: tuple[str, ...]) -> None:
    hub.fault(".*", "hang", seconds=30, times=-1)
    done = machine.run(*command, HF_HUB_DOWNLOAD_TIMEOUT="1", HF_TOKEN="hf_good")
    assert done.code == 4
    assert "did not answer within 1 s" in done.err


@fault("Captive portal: 200 with HTML", "exit 4: a web page, not the Hub")
def test_a_captive_portal_is_recognised(machine: Machine, hub: HubStandin) -> None:
    hub.fault(".*", "html", times=-1)
    done = machine.run("download", "acme/tiny")
    assert done.code == 4
    assert "web page" in done.err
    assert "Traceback" not in done.err


@fault("Captive portal: 200 with HTML", "in place of a file: never taken for it")
def test_a_captive_portal_in_place_of_a_file_is_not_the_file(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "html", times=-1)
    done = machine.run("download", big)
    assert done.code == 4
    assert "web page" in done.err
    assert machine.run("download", big, "--offline").code == 4


@fault("Connection closed every 9 MB", "resumes by Range from the byte it has")
def test_a_connection_that_closes_every_9_mb_is_resumed(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "drop", after=9_000_000, times=-1)
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    ranges = [int(e["range"].removeprefix("bytes=").removesuffix("-")) for e in hub.asked("/cdn/") if e["range"]]
    assert len(ranges) == 4
    assert ranges == sorted(ranges)


@fault("Connection closed every 9 MB", "gives up only when no byte arrives")
def test_a_connection_without_data_is_given_up(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "drop", after=9_000_000)
    hub.fault(CDN, "refuse", times=-1)
    done = machine.run("download", big, "--retries", "2")
    assert done.code == 4
    assert [p.stat().st_size for p in machine.partials()] == [9_000_000]
    hub.clear()
    assert machine.run("download", big).code == 0
    assert [e["range"] for e in hub.asked("/cdn/")] == ["bytes=9000000-"]


@fault("TCP reset in the body", "resumes")
def test_a_reset_is_resumed(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "rst", after=20_000_000)
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    assert sum(e["sent"] for e in hub.asked("/cdn/")) < 80_000_000


@fault("5xx, 403 (signed URL expired) or 416 on the file", "asks for a fresh URL, resumes")
@pytest.mark.parametrize("status", [500, 503, 403, 416])
def test_a_refused_file_is_asked_for_again(machine: Machine, hub: HubStandin, big: str, status: int) -> None:
    hub.fault(CDN, "drop", after=10_000_000)
    hub.fault(CDN, status=status)
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    urls = [e["path"] for e in hub.asked("/cdn/")]
    assert len(set(urls)) == len(urls) == 3, "each attempt has its own signed address"
    assert hub.asked("/cdn/")[-1]["range"] == "bytes=10000000-"


@fault("Stall in the body", "retried after the time-out, and said")
def test_a_stalled_body_is_resumed(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "stall", after=15_000_000, seconds=600)
    hub.fault(CDN, "stall", after=0, seconds=600)
    done = machine.run("download", big, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    assert "no byte for 1 s" in done.err


@fault("Short body whose length agrees", "goes on from what it has")
def test_a_short_answer_is_completed(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "short", by=1000)
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    assert hub.asked("/cdn/")[-1]["range"] is not None


@fault("Short body whose length agrees", "exit 4 when it stays short")
def test_an_answer_that_stays_short_is_an_error(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "short", by=1000, times=-1)
    done = machine.run("download", big, "--retries", "2")
    assert done.code == 4
    assert "model.safetensors is incomplete" in done.err


@fault("One byte flipped", "found by its hash, fetched again")
@pytest.mark.parametrize("path", [CDN, r"/resolve-cache/.*/tokenizer\.json"])
def test_a_flipped_byte_is_found_and_fetched_again(machine: Machine, hub: HubStandin, big: str, path: str) -> None:
    hub.fault(path, "corrupt", at=3)
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert "arrived damaged" in done.err
    assert machine.is_whole(big)


@fault("One byte flipped", "exit 4 when it stays damaged; nothing wrong in the cache")
def test_a_byte_that_stays_flipped_is_an_error(machine: Machine, hub: HubStandin) -> None:
    hub.fault(CDN, "corrupt", at=3, times=-1)
    done = machine.run("download", "acme/tiny")
    assert done.code == 4
    assert "model.safetensors arrived damaged twice" in done.err
    damaged = hub.repos["acme/tiny"].files["model.safetensors"]["sha256"]
    assert not [p for p in machine.repo("acme/tiny").rglob("*") if damaged in p.name]
    hub.clear()
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.is_whole("acme/tiny")


@fault("Cached blob damaged or truncated later", "download --verify finds it offline and repairs it")
@pytest.mark.parametrize("cut", [False, True])
def test_verify_finds_and_repairs_damage(machine: Machine, hub: HubStandin, cut: bool) -> None:
    assert machine.run("download", "acme/tiny").code == 0
    assert machine.run("download", "acme/tiny", "--verify", HF_HUB_OFFLINE="1").code == 0
    blob = next((machine.repo("acme/tiny") / "snapshots").rglob("model.safetensors")).resolve()
    content = bytearray(blob.read_bytes())
    content[100_000] ^= 1
    blob.write_bytes(content[:150_000] if cut else content)

    found = machine.run("download", "acme/tiny", "--verify", "--offline", "--json")
    assert found.code == 1
    assert [f["path"] for f in found.document["files"] if f["state"] == "damaged"] == ["model.safetensors"]
    assert hub.asked("/cdn/") == hub.asked("/cdn/")[:1], "offline, nothing is fetched"

    repaired = machine.run("download", "acme/tiny", "--verify")
    assert repaired.code == 0, repaired.err
    assert "model.safetensors is damaged" in repaired.err
    assert machine.is_whole("acme/tiny")


@fault("kill -9 three times, rerun", "resumes each time, leaves no orphan")
def test_killed_three_times_it_still_resumes(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=20_000_000, times=3)
    for kill in range(3):
        process = machine.start("download", big)
        machine.wait_for_bytes((kill + 1) * 6_000_000)
        process.kill()
        process.communicate()
    assert len(machine.partials()) == 1
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)
    starts = [int((e["range"] or "bytes=0-")[6:-1]) for e in hub.asked("/cdn/")]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[3] >= 18_000_000


@fault("Ctrl-C", "exit 130, state kept, says how to go on")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(machine: Machine, hub: HubStandin, big: str, number: signal.Signals, code: int) -> None:
    hub.fault(CDN, "throttle", rate=10_000_000, times=-1)
    process = machine.start("download", big, HF_HUB_DOWNLOAD_TIMEOUT="30")
    machine.wait_for_bytes(3_000_000)
    done = interrupt(process, number)
    assert done.code == code
    assert f"To continue: llmctl download {big}" in done.err
    assert sum(p.stat().st_size for p in machine.partials()) >= 3_000_000


@fault("Ctrl-C", "also while the server says nothing")
def test_ctrl_c_does_not_wait_for_a_silent_server(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "stall", after=5_000_000, seconds=30, times=-1)
    process = machine.start("download", big, HF_HUB_DOWNLOAD_TIMEOUT="30")
    machine.wait_for_bytes(4_000_000)
    time.sleep(0.3)
    done = interrupt(process, signal.SIGINT)
    assert done.code == 130


@fault("SIGTERM", "as Ctrl-C, exit 143")
def test_sigterm_while_the_hub_is_silent(machine: Machine, hub: HubStandin) -> None:
    hub.fault(REVISION, "hang", seconds=30, times=-1)
    process = machine.start("download", "acme/tiny", HF_HUB_DOWNLOAD_TIMEOUT="30")
    time.sleep(1.5)
    done = interrupt(process, signal.SIGTERM)
    assert done.code == 143


@fault("Disk full", "refused before the first byte, with both figures and the place")
def test_a_download_that_cannot_fit_is_refused_with_sizes(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"sizes": {"model.safetensors": 10**15}}}})
    done = machine.run("download", "acme/tiny", "--json")
    assert done.code == 3
    error = done.document["error"]
    assert error["needed_bytes"] > 10**15 > error["free_bytes"]
    assert Path(error["path"]).exists()
    assert "1e+03 TB" not in done.err
    assert not hub.asked("/resolve/")


def _in_own_mounts(machine: Machine, script: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in its own mount namespace; skip if the machine does not allow it."""
    unshare = shutil.which("unshare")
    allowed = (
        unshare and subprocess.run([unshare, "-rm", "mount", "-t", "tmpfs", "x", "/mnt"], check=False).returncode == 0
    )
    if not unshare or not allowed:
        pytest.skip("no user namespaces here")
    return subprocess.run(
        [unshare, "-rm", "sh", "-c", script], env=machine.env | more, capture_output=True, text=True, check=False
    )


@fault("Disk full", "filling up later: exit 3 with the same words, the partial kept")
def test_a_disk_that_fills_up_keeps_what_arrived(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=20_000_000, times=1)
    script = f"""
        mkdir -p $HF_HOME && mount -t tmpfs -o size=60m disk $HF_HOME || exit 99
        ({shlex.quote(LLMCTL)} download {big}; echo code=$?) &
        partial=$HF_HOME/hub/models--acme--big/blobs/*.incomplete
        for i in $(seq 300); do [ "$(cat $partial 2>/dev/null | wc -c)" -gt 2000000 ] && break; sleep 0.05; done
        head -c 50000000 /dev/zero > $HF_HOME/filler; wait
        stat -c 'kept=%s' $partial
        rm $HF_HOME/filler; {shlex.quote(LLMCTL)} download {big} --quiet; echo again=$?"""
    done = _in_own_mounts(machine, script)
    assert "code=3" in done.stdout, done.stderr
    assert "the disk is too full" in done.stderr
    kept = next(line for line in done.stdout.splitlines() if line.startswith("kept="))
    assert int(kept[5:]) > 1_000_000
    assert "again=0" in done.stdout


@fault("Two processes, same repository", "one copy of each object is fetched, both succeed")
def test_two_processes_fetch_each_object_once(machine: Machine, hub: HubStandin, sharded: str) -> None:
    hub.fault(CDN, "throttle", rate=2_000_000, times=1)
    both = [machine.start("download", sharded) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert machine.is_whole(sharded)
    assert len(hub.asked("/cdn/", "GET")) == 3


@fault("Two processes, same repository", "one is killed half-way: the other goes on from there")
def test_one_of_two_killed_half_way_leaves_the_other_its_bytes(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=10_000_000, times=1)
    first = machine.start("download", big)
    machine.wait_for_bytes(5_000_000)
    second = machine.start("download", big)
    time.sleep(1)
    first.kill()
    first.communicate()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert machine.is_whole(big)
    assert int((hub.asked("/cdn/")[-1]["range"] or "bytes=0-")[6:-1]) >= 5_000_000


@fault("Lock holder frozen", "says which process and since when; --lock-timeout ends the wait")
def test_a_frozen_holder_is_named(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "throttle", rate=5_000_000, times=-1)
    holder = machine.start("download", big)
    machine.wait_for_bytes(1_000_000)
    holder.send_signal(signal.SIGSTOP)
    try:
        done = machine.run("download", big, "--lock-timeout", "2")
    finally:
        holder.kill()
        holder.communicate()
    assert done.code == 3
    assert f"process {holder.pid}, since 20" in done.err
    assert "waiting for process" in done.err


@fault("Read-only cache", "a cached model works; a missing one is exit 3 that names the folder and HF_HOME")
def test_a_read_only_cache_serves_and_is_named(machine: Machine, hub: HubStandin, sharded: str) -> None:
    assert machine.run("download", "acme/tiny").code == 0
    script = f"""
        mount --bind $HF_HOME $HF_HOME && mount -o remount,ro,bind $HF_HOME || exit 99
        {shlex.quote(LLMCTL)} download acme/tiny --quiet; echo cached=$?
        {shlex.quote(LLMCTL)} download acme/tiny --quiet --offline; echo offline=$?
        {shlex.quote(LLMCTL)} download {sharded}; echo missing=$?"""
    done = _in_own_mounts(machine, script)
    assert "cached=0" in done.stdout, done.stderr
    assert "offline=0" in done.stdout
    assert "missing=3" in done.stdout
    assert str(machine.cache) in done.stderr
    assert "HF_HOME" in done.stderr


@fault("Only config.json cached, then offline or 503", "exit 4: incomplete, lists what is missing")
def test_an_incomplete_model_is_not_a_success(machine: Machine, hub: HubStandin) -> None:
    assert machine.run("download", "acme/tiny", "--include", "config.json").code == 0
    offline = machine.run("download", "acme/tiny", HF_HUB_OFFLINE="1")
    assert offline.code == 4
    assert "incomplete" in offline.err
    assert "model.safetensors" in offline.err
    assert "llmctl download acme/tiny" in offline.err
    hub.fault(REVISION, status=503, times=-1)
    assert machine.run("download", "acme/tiny", "--retries", "1").code == 4


@fault("Hostile listing (`../../x`, absolute paths)", "rejected, exit 4")
@pytest.mark.parametrize("path", ["../../x", "/etc/x", "a/../../x", "..\\x", "C:/x"])
def test_a_hostile_listing_is_rejected(machine: Machine, hub: HubStandin, settle: Settle, path: str) -> None:
    settle({"repos": {"acme/tiny": {"extra_paths": [path]}}})
    done = machine.run("download", "acme/tiny")
    assert done.code == 4
    assert "outside the model's own folder" in done.err
    assert not hub.asked("/resolve/")


GATED = {
    "tokens": {
        "hf_good": {"name": "alice", "role": "read"},
        "hf_narrow": {"name": "carol", "role": "fineGrained", "fineGrained": {"canReadGatedRepos": False}},
    },
    "repos": {
        "acme/tiny": {"gated": "manual", "allow": ["carol"]},
        "acme/private": {"private": True, "allow": ["carol"]},
    },
}


@fault("Gated, not asked / asked and pending / refused", "exit 4, the model's page and llmctl login")
@pytest.mark.parametrize("how", ["auto", "manual"])
@pytest.mark.parametrize("token", ["", "hf_good"])
def test_a_gated_model_names_its_page(machine: Machine, hub: HubStandin, settle: Settle, how: str, token: str) -> None:
    settle({**GATED, "repos": {"acme/tiny": {"gated": how}}})
    done = machine.run("download", "acme/tiny", "--json", HF_TOKEN=token)
    assert done.code == 4
    error = done.document["error"]
    assert error["kind"] == "gated"
    assert f"{hub.url}/acme/tiny" in error["hint"]
    assert "llmctl login" in error["hint"]
    if token:
        assert ("pending" in error["message"]) == (how == "manual")
    else:
        assert "no token was sent" in error["message"]


@fault("Not found or private, with and without a token", "exit 4, tells which are possible, offers near names")
def test_a_missing_model_suggests_alternatives(machine: Machine, hub: HubStandin) -> None:
    assert machine.run("download", "acme/tiny").code == 0
    without = machine.run("download", "acme/tiyn")
    assert without.code == 4
    assert "does not exist, or is private and no token was sent" in without.err
    assert "llmctl login" in without.err
    assert "acme/tiny" in without.err
    with_token = machine.run("download", "acme/tiyn", HF_TOKEN="hf_good")
    assert with_token.code == 4
    assert "private and alice may not see it" in with_token.err


def test_a_missing_revision_is_distinguished_from_a_missing_model(machine: Machine) -> None:
    done = machine.run("download", "acme/tiny", "--revision", "v9")
    assert done.code == 4
    assert "no branch, tag or commit v9" in done.err


@fault("Wrong token", "exit 4, where the token came from, nothing saved")
def test_a_wrong_token_is_named_by_its_source(machine: Machine, hub: HubStandin) -> None:
    from_variable = machine.run("download", "acme/tiny", HF_TOKEN="hf_bad")
    assert from_variable.code == 4
    assert "the token from HF_TOKEN" in from_variable.err
    assert "hf_bad" not in from_variable.err + from_variable.out
    file = machine.home / "hf" / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_text("hf_bad")
    from_file = machine.run("download", "acme/tiny")
    assert from_file.code == 4
    assert str(file) in from_file.err
    file.unlink()
    assert machine.run("login", stdin="hf_bad\n").code == 4
    assert not file.exists()
    assert not file.with_name("stored_tokens").exists()


@fault("Fine-grained token without the scope (403)", "exit 4, names the missing scope and its page")
def test_a_missing_scope_is_named(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    settle(GATED)
    done = machine.run("download", "acme/tiny", HF_TOKEN="hf_narrow")
    assert done.code == 4
    assert "Read access to contents of all public gated repos you can access" in done.err
    assert f"{hub.url}/settings/tokens" in done.err


def test_a_refusing_second_origin_is_not_reported_as_the_hub(machine: Machine, hub: HubStandin) -> None:
    hub.fault(CDN, status=403, times=-1)
    done = machine.run("download", "acme/tiny", "--retries", "1", HF_TOKEN="hf_good")
    assert done.code == 4
    assert "where the Hub keeps large files, answered 403" in done.err
    assert "alice" not in done.err


def test_a_disabled_model_is_reported_as_disabled(machine: Machine, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"disabled": True}}})
    done = machine.run("download", "acme/tiny")
    assert done.code == 4
    assert "has been disabled" in done.err


def test_the_token_never_leaves_the_hubs_own_origin(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "drop", after=9_000_000, times=2)
    done = machine.run("download", big, HF_TOKEN="hf_good")
    assert done.code == 0
    assert all(e["auth"] for e in hub.log if not e["cdn"])
    assert not hub.leaks()
    assert len(hub.asked("/cdn/")) == 3


def test_a_failing_xet_falls_back_to_http(machine: Machine, hub: HubStandin, settle: Settle) -> None:
    settle({"repos": {"acme/tiny": {"xet": True}}})
    done = machine.run("download", "acme/tiny", HF_HUB_DISABLE_XET="0")
    assert done.code == 0, done.err
    assert "going on by HTTP" in done.err
    assert machine.is_whole("acme/tiny")


def test_a_server_that_ignores_range_starts_the_file_over(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "drop", after=9_000_000)
    hub.fault(CDN, "ignore_range")
    done = machine.run("download", big)
    assert done.code == 0, done.err
    assert machine.is_whole(big)


def test_a_body_without_a_length_is_accepted(machine: Machine, hub: HubStandin, big: str) -> None:
    hub.fault(CDN, "no_length")
    assert machine.run("download", big).code == 0
    assert machine.is_whole(big)


def test_an_error_is_one_json_document(machine: Machine) -> None:
    done = machine.run("download", "acme/none", "--json")
    assert json.loads(done.out)["schema"] == "llmctl.error/1"
    assert os.linesep in done.err


def test_a_missing_response_to_an_xet_token_request_is_given_up(
    machine: Machine, hub: HubStandin, settle: Settle
) -> None:
    settle({"repos": {"acme/tiny": {"xet": True}}})
    hub.fault("/xet-read-token/", "hang", seconds=30, times=-1)
    more = {"HF_HUB_DISABLE_XET": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    process = machine.start("download", "acme/tiny", **more)
    until = time.monotonic() + 20
    while len(hub.asked("/xet-read-token/")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    done = interrupt(process, signal.SIGINT)
    assert len(hub.asked("/xet-read-token/")) >= 2, "it was asked again after a time-out"
    assert done.code == 130
