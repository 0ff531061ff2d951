"""Tokens entered, checked, stored, named, switched and deleted, through the real command line."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from support.hub_machine import HF, Machine
from support.hub_standin import HubStandin
from support.terminal import Terminal

Settle = Callable[[dict[str, Any]], None]
TWO = {
    "tokens": {
        "hf_good": {"name": "alice", "role": "read"},
        "hf_work": {"name": "worker", "role": "write", "token_name": "office", "orgs": ["acme"]},
    }
}


def _terminal(machine: Machine, *arguments: str, **more: str) -> Terminal:
    return Terminal(*arguments, env=machine.env | {"TERM": "xterm"} | more, columns=200, timeout=20)


def test_a_token_from_standard_input_is_checked_and_stored_for_its_owner_only(
    machine: Machine, hub: HubStandin
) -> None:
    done = machine.run("login", stdin="hf_good\n")
    assert done.code == 0, done.err
    assert "logged in as alice" in done.out
    assert "hf_good" not in done.out + done.err
    file = machine.home / "hf" / "token"
    assert file.read_text() == "hf_good"
    for path in (file, file.with_name("stored_tokens")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "alice" in machine.run("auth", "whoami", program=HF).out


def test_without_standard_input_the_token_of_the_environment_is_stored(machine: Machine) -> None:
    done = machine.run("login", HF_TOKEN="hf_good", stdin="")
    assert done.code == 0, done.err
    assert (machine.home / "hf" / "token").read_text() == "hf_good"
    assert "takes precedence" not in done.err


def test_without_any_token_the_hint_explains_how_to_get_one(machine: Machine) -> None:
    done = machine.run("login")
    assert done.code == 2
    assert "llmctl login < FILE" in done.err


@pytest.mark.parametrize("text", ["two words", "tökén", ""])
def test_an_invalid_token_is_not_sent(machine: Machine, hub: HubStandin, text: str) -> None:
    assert machine.run("login", stdin=text + "\n").code == 2
    assert not hub.log


def test_there_is_no_way_to_put_a_token_on_the_command_line(machine: Machine) -> None:
    done = machine.run("login", "--token", "hf_good")
    assert done.code == 2
    assert "hf_good" not in machine.run("login", "--help").out


def test_named_tokens_are_kept_beside_each_other_and_switched(machine: Machine, settle: Settle) -> None:
    settle(TWO)
    assert machine.run("login", "--name", "home", stdin="hf_good").code == 0
    assert machine.run("login", stdin="hf_work").code == 0
    assert machine.run("use-token").out.splitlines() == ["  home", "* office"]
    assert machine.run("whoami", "--json").document["name"] == "worker"
    assert machine.run("use-token", "home").code == 0
    assert machine.run("whoami").out == "alice\n"
    wrong = machine.run("use-token", "hoem")
    assert wrong.code == 2
    assert "home, office" in wrong.err
    assert machine.run("logout", "--name", "home").code == 0
    assert machine.run("use-token").out.splitlines() == ["  office"]
    assert machine.run("whoami").code == 4


def test_hf_reads_the_same_store(machine: Machine, settle: Settle) -> None:
    settle(TWO)
    machine.run("login", "--name", "home", stdin="hf_good")
    machine.run("login", stdin="hf_work")
    listed = machine.run("auth", "list", program=HF)
    assert "home" in listed.out + listed.err
    assert "office" in listed.out + listed.err
    assert machine.run("auth", "switch", "--token-name", "home", program=HF).code == 0
    assert machine.run("whoami").out == "alice\n"


def test_whoami_shows_the_source_of_the_token(machine: Machine, settle: Settle) -> None:
    settle(TWO)
    machine.run("login", stdin="hf_good")
    file = machine.home / "hf" / "token"
    assert machine.run("whoami", "--json").document["source"] == str(file)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        document = machine.run("whoami", "--json", **{name: "hf_work"}).document
        assert (document["name"], document["source"], document["organizations"]) == ("worker", name, ["acme"])


def test_login_and_logout_mention_a_token_of_the_environment(machine: Machine, settle: Settle) -> None:
    settle(TWO)
    done = machine.run("login", stdin="hf_good", HF_TOKEN="hf_work")
    assert "HF_TOKEN is set and takes precedence" in done.err
    gone = machine.run("logout", HF_TOKEN="hf_work")
    assert gone.code == 0
    assert "HF_TOKEN is set and its token is still in use" in gone.err
    assert not (machine.home / "hf" / "token").exists()
    assert not (machine.home / "hf" / "stored_tokens").exists()


def test_a_second_logout_is_not_an_error(machine: Machine) -> None:
    assert machine.run("logout").out == "no token was stored\n"


def test_git_credentials_are_stored_only_on_request(machine: Machine) -> None:
    store = machine.home / "git-credentials"
    (machine.home / ".gitconfig").write_text(f"[credential]\n\thelper = store --file {store}\n")
    machine.run("login", stdin="hf_good")
    assert not store.exists()
    done = machine.run("login", "--git-credential", stdin="hf_good")
    assert done.code == 0, done.err
    assert "hf_good" in store.read_text()


def test_on_a_terminal_the_token_is_asked_for_and_not_shown(machine: Machine) -> None:
    terminal = _terminal(machine, "login")
    terminal.expect("Token, not shown")
    terminal.sendline("hf_good")
    terminal.expect("logged in as alice")
    terminal.expect(pexpect.EOF)
    assert "hf_good" not in (terminal.before or "")
    terminal.close()
    assert terminal.exitstatus == 0


def test_on_a_terminal_the_token_of_the_environment_is_offered(machine: Machine) -> None:
    terminal = _terminal(machine, "login", HF_TOKEN="hf_good")
    terminal.expect("HF_TOKEN is set. Store that token")
    terminal.sendline("y")
    terminal.expect("logged in as alice")
    terminal.expect(pexpect.EOF)
    assert (machine.home / "hf" / "token").read_text() == "hf_good"


def test_on_a_terminal_login_works_through_a_browser(machine: Machine, hub: HubStandin) -> None:
    terminal = _terminal(machine, "login", "--name", "browser")
    terminal.expect("press Enter to log in with a browser")
    terminal.sendline("")
    terminal.expect("Open http://127.0.0.1:.*/device.* and enter the code ABCD-EFGH")
    terminal.expect("logged in as alice")
    terminal.expect(pexpect.EOF)
    assert Path(machine.home / "hf" / "token").exists()
    assert machine.run("use-token").out == "* browser\n"


def test_an_unreadable_store_is_replaced(machine: Machine) -> None:
    store = machine.home / "hf" / "stored_tokens"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"no section\n\xff")
    assert machine.run("use-token").out == "no token is stored\n"
    assert machine.run("login", stdin="hf_good").code == 0
    assert machine.run("use-token").out == "* alice-token\n"


def test_a_folder_that_cannot_be_created_is_a_machine_error(machine: Machine) -> None:
    (machine.home / "file").write_text("")
    for command in (("login",), ("download", "acme/tiny")):
        done = machine.run(*command, stdin="hf_good", HF_HOME=str(machine.home / "file" / "hf"))
        assert done.code == 3, done.err
        assert str(machine.home / "file") in done.err
