"""Ordinary environments: each works, or ends in one line that names what to change. None is a bug of llmctl.

Where the environment is a matter of variables and files, commands run through the fork server. Streams, folders and
users need children of their own; these run commands that import neither torch nor transformers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import forkserver
from support.hub_machine import Machine, Result, make_model
from support.hub_standin import HubStandin

Run = Callable[..., Any]
Tiny = Callable[[str], Path]
SECRET = "hf_good"
NOBODY = 65534
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="descriptors and /dev/full of POSIX")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandin]:
    """Serve one small model, acme/tiny."""
    root = tmp_path_factory.mktemp("served")
    make_model(root / "acme" / "tiny", shard_bytes=1000)
    with HubStandin(root) as standin:
        yield standin


@pytest.fixture
def machine(tmp_path: Path, hub: HubStandin) -> Machine:
    """Return a machine with its own folders."""
    (tmp_path / "home" / "hf").mkdir(parents=True)
    return Machine(tmp_path / "home", hub)


def assert_is_one_message(done: Any, code: int, *words: str) -> None:
    """Assert that a command ended with an exit code, an error of one line and a hint, and no traceback."""
    error = done.err if isinstance(done, Result) else done.stderr
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (done.code if isinstance(done, Result) else done.returncode) == code, error
    assert len(lines) == 1, error
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert "bug" not in error
    assert error.splitlines()[-1].startswith("  "), f"no next step: {error}"


# -- variables: (variable, value, exit code, words of the message)

VARIABLES: list[tuple[str, str, int, tuple[str, ...]]] = [
    ("HF_TOKEN", "“hf_good”", 2, ("HF_TOKEN", "quotation mark")),
    ("HF_TOKEN", '"hf_good"', 2, ("HF_TOKEN", "quotation mark")),
    ("HF_TOKEN", "hf_go\u200bod", 2, ("HF_TOKEN", "invisible")),
    ("HF_TOKEN", "hf_go\u00f6d", 2, ("HF_TOKEN", "letter")),
    ("HUGGING_FACE_HUB_TOKEN", "Bearer hf_good", 2, ("HUGGING_FACE_HUB_TOKEN", "space")),
    ("HF_TOKEN", "\u00a0hf_good\r\n", 0, ()),
    ("HF_OIDC_RESOURCE", "acme/x", 4, ("HF_OIDC_RESOURCE", "unset it")),
    ("ALL_PROXY", "socks5h://anna:secret@127.0.0.1:1", 3, ("ALL_PROXY", "socksio", "pip install")),
    ("HTTP_PROXY", "socks4://127.0.0.1:1", 2, ("HTTP_PROXY", "socks5h://")),
    ("HTTP_PROXY", "http://anna:secret@127.0.0.1:abc", 2, ("HTTP_PROXY", "port")),
    ("HTTP_PROXY", "http://127.0.0.1:99999", 2, ("HTTP_PROXY", "port")),
    ("http_proxy", "http://[::1:3128", 2, ("http_proxy", "not an address")),
    ("HTTP_PROXY", "http://127.0.0.1:1 ", 2, ("HTTP_PROXY", "space")),
    ("HTTP_PROXY", "http://", 2, ("HTTP_PROXY", "no host")),
    ("NO_PROXY", "::1,[::1],[::1,fe80::/10,127.0.0.1, *.corp ,http://x/y", 0, ()),
    ("SSL_CERT_FILE", "/absent.pem", 2, ("SSL_CERT_FILE", "/absent.pem")),
    ("SSL_CERT_FILE", os.devnull, 2, ("SSL_CERT_FILE", "no certificate")),
    ("SSL_CERT_FILE", "/", 2, ("SSL_CERT_FILE", "folder")),
    ("REQUESTS_CA_BUNDLE", "/absent.pem", 0, ()),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", 2, ("HF_HUB_DOWNLOAD_TIMEOUT", "whole number")),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5", 2, ("HF_HUB_DOWNLOAD_TIMEOUT", "whole number")),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "-1", 2, ("HF_HUB_DOWNLOAD_TIMEOUT", "whole number")),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "", 0, ()),
    ("HF_HUB_ETAG_TIMEOUT", "5s", 2, ("HF_HUB_ETAG_TIMEOUT", "whole number")),
    ("HF_ENDPOINT", "huggingface.co", 2, ("HF_ENDPOINT", "https://")),
    ("HF_ENDPOINT", "http:/huggingface.co", 2, ("HF_ENDPOINT", "https://")),
    ("HF_ENDPOINT", " http://127.0.0.1:1", 2, ("HF_ENDPOINT", "space")),
    ("HF_ENDPOINT", "http://anna:secret@127.0.0.1:abc", 2, ("HF_ENDPOINT", "port")),
    ("HF_ENDPOINT", "http://[::1", 2, ("HF_ENDPOINT", "not an address")),
    ("HF_ENDPOINT", "http://127.0.0.1:1?x=1", 2, ("HF_ENDPOINT", "?")),
    ("HF_HUB_OFFLINE", "enabled", 2, ("HF_HUB_OFFLINE", "forbid the network")),
    ("LLMCTL_HOME", "~nobody-of-that-name/x", 2, ("LLMCTL_HOME", "home folder")),
    ("TMPDIR", "/absent", 0, ()),
    ("XDG_CACHE_HOME", "relative", 0, ()),
]


@pytest.mark.parametrize(("name", "value", "code", "words"), VARIABLES, ids=[f"{n}={v}" for n, v, _, _ in VARIABLES])
def test_a_variable_works_or_is_named_with_the_fix(
    name: str, value: str, code: int, words: tuple[str, ...], machine: Machine
) -> None:
    no_proxy = "" if name.lower().endswith("_proxy") else "127.0.0.1"
    done = machine.run("download", "acme/tiny", **{"NO_PROXY": no_proxy, name: value})
    if code:
        assert_is_one_message(done, code, *words)
        assert not list(machine.cache.rglob("blobs"))
    else:
        assert done.code == 0, done.err
        assert machine.is_whole("acme/tiny")
    for secret in (SECRET, "secret", "anna"):
        assert secret not in done.out + done.err


@pytest.mark.parametrize("address", ["", "{url}/", "{url}//"])
def test_an_empty_address_of_the_hub_is_the_default_and_slashes_at_its_end_do_not_count(
    address: str, machine: Machine
) -> None:
    done = machine.run("download", "acme/tiny", "--retries", "0", HF_ENDPOINT=address.format(url=machine.hub.url))
    assert (done.code == 0) if address else ("huggingface.co" in done.err)


@pytest.mark.parametrize(
    "content",
    ["\ufeffhf_good".encode(), "hf_good\r\n".encode("utf-16"), b"hf_go\xf6d", "“hf_good”".encode(), b"h\0f\0_\0g\0"],
    ids=["BOM", "UTF-16", "Latin-1", "quotes", "UTF-16 without BOM"],
)
def test_a_token_file_of_another_program_is_named_and_login_replaces_it(content: bytes, machine: Machine) -> None:
    file = machine.home / "hf" / "token"
    file.write_bytes(content)
    done = machine.run("download", "acme/tiny")
    assert_is_one_message(done, 2, str(file), "llmctl login")
    assert SECRET not in done.err
    assert machine.run("login", stdin="\ufeffhf_good\r\n").code == 0
    assert machine.run("whoami").code == 0
    file.write_bytes(content)
    assert machine.run("logout").code == 0
    assert not file.exists()


# -- standard streams


def shell(command: str, machine: Machine, **environment: str | None) -> "subprocess.CompletedProcess[str]":
    """Run a shell command in which `$L` is llmctl."""
    env = machine.env | {"L": f"{sys.executable} -m llmctl"} | {k: v for k, v in environment.items() if v is not None}
    for name in [name for name, value in environment.items() if value is None]:
        env.pop(name, None)
    return subprocess.run(
        ["bash", "-c", command], env=env, cwd=machine.home, capture_output=True, text=True, timeout=60, check=False
    )


@POSIX
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("$L config show >&-", 2, ("standard output is closed", "> FILE")),
        ("$L --version >&-", 2, ("standard output is closed",)),
        ("$L config show > /dev/full", 3, ("standard output", "No space left")),
        ("PYTHONUNBUFFERED=1 $L config show > /dev/full", 3, ("standard output", "No space left")),
        ("$L --help > /dev/full", 3, ("standard output", "No space left")),
        ("$L config show --nope --json > /dev/full", 2, ()),
        ("$L config show --json 2> /dev/full", 0, ()),
        ("$L config show --json 2>&-", 0, ()),
        ("$L generate <&-", 2, ("there is no prompt",)),
        ("mkdir gone; cd gone; rmdir ../gone; $L config show", 2, ("current folder", "cd")),
        ("$L config init --help | true; exit ${PIPESTATUS[0]}", 1, ()),
    ],
)
def test_a_stream_that_cannot_be_used_is_named_or_not_missed(
    command: str, code: int, words: tuple[str, ...], machine: Machine
) -> None:
    done = shell(command, machine, PYTHONUNBUFFERED=None)
    if words:
        assert_is_one_message(done, code, *words)
    assert done.returncode == code or "--nope" in command
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    if code == 0:
        assert json.loads(done.stdout)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "TERM": "dumb", "COLUMNS": "0"},
    ],
    ids=lambda environment: next(iter(environment.values())),
)
def test_arguments_files_and_json_keep_every_character_in_every_encoding(
    environment: dict[str, str], machine: Machine
) -> None:
    text = "h\u00e9llo \u65e5\u672c \U0001f600"
    (machine.home / "llmctl.yaml").write_text(f"chat: {{system: {text}}}\n", encoding="utf-8")
    command = [sys.executable, "-m", "llmctl", "config", "show", "--json", "--set", f"generation.stop_strings={text}"]
    done = subprocess.run(command, env=machine.env | environment, cwd=machine.home, capture_output=True, check=False)
    document = json.loads(done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8")))
    assert done.returncode == 0, done.stderr
    assert json.dumps(document, ensure_ascii=False).count(text) == 2


@POSIX
def test_an_argument_of_bytes_that_are_no_text_is_named(machine: Machine) -> None:
    done = shell("$L generate --prompt $'\\xff'", machine)
    assert_is_one_message(done, 2, "--prompt", "UTF-8")


@pytest.mark.parametrize(
    "environment", [{"PYTHONWARNINGS": "error"}, {"PYTHONDEVMODE": "1"}, {"PYTHONOPTIMIZE": "1"}, {"TZ": "Nope/Zone"}]
)
def test_settings_of_python_change_nothing(environment: dict[str, str], machine: Machine) -> None:
    done = shell("$L config show --json", machine, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert json.loads(done.stdout)


def test_python_without_docstrings_is_named(machine: Machine) -> None:
    assert_is_one_message(shell("$L config show", machine, PYTHONOPTIMIZE="2"), 2, "PYTHONOPTIMIZE", "unset it")


# -- the text of files and of standard input

HELLO = "h\u00e9llo\r\nyou"
READABLE = {
    "UTF-8": HELLO.encode(),
    "UTF-8 with BOM": HELLO.encode("utf-8-sig"),
    "UTF-16": HELLO.encode("utf-16"),
    "UTF-16 BE": b"\xfe\xff" + HELLO.encode("utf-16-be"),
    "UTF-32": HELLO.encode("utf-32"),
}
UNREADABLE = {"Latin-1": HELLO.encode("latin-1"), "UTF-16 without BOM": HELLO.encode("utf-16-le")}


def prompt_document(tiny_models: Tiny, machine: Machine, *arguments: str, stdin: bytes = b"") -> Any:
    """Return the outcome of `llmctl prompt --json`, with bytes as standard input."""
    pipe = subprocess.PIPE
    env = machine.env | {"HF_HUB_OFFLINE": "1"}
    command = ("prompt", "--model", str(tiny_models("llama")), "--json", *arguments)
    process = forkserver.start(*command, env=env, cwd=machine.home, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = process.communicate(stdin, timeout=60)
    return subprocess.CompletedProcess(command, process.wait(), out.decode(), err.decode())


@pytest.mark.parametrize("encoding", READABLE)
def test_a_prompt_is_read_in_the_encodings_of_editors(encoding: str, tiny_models: Tiny, machine: Machine) -> None:
    (machine.home / "prompt.txt").write_bytes(READABLE[encoding])
    from_file = prompt_document(tiny_models, machine, "--prompt-file", "prompt.txt")
    from_pipe = prompt_document(tiny_models, machine, stdin=READABLE[encoding])
    for done in (from_file, from_pipe):
        assert done.returncode == 0, done.stderr
        assert "user\nh\u00e9llo\nyou<|im_end|>" in json.loads(done.stdout)["text"]


@pytest.mark.parametrize("encoding", UNREADABLE)
def test_a_prompt_in_another_encoding_is_refused(encoding: str, tiny_models: Tiny, machine: Machine) -> None:
    (machine.home / "prompt.txt").write_bytes(UNREADABLE[encoding])
    from_file = prompt_document(tiny_models, machine, "--prompt-file", "prompt.txt")
    assert_is_one_message(from_file, 2, "prompt.txt", "iconv")
    assert_is_one_message(
        prompt_document(tiny_models, machine, stdin=UNREADABLE[encoding]), 2, "standard input", "iconv"
    )


# -- folders that this user may not write


@pytest.fixture
def guest(hub: HubStandin) -> Iterator["Guest"]:
    """Return a user who may read a machine with acme/tiny in its cache, and may write nothing."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        guest = Guest(Machine(Path(folder), hub))
        assert guest.machine.run("download", "acme/tiny").code == 0
        yield guest
        guest.allow(Path(folder))


class Guest:
    """A user without rights. Root becomes another user for each command; any other user gives up its own rights."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.home = machine, machine.home
        self._is_root = os.getuid() == 0

    def allow(self, folder: Path) -> None:
        """Let the guest write a folder and everything below it."""
        for path in (folder, *folder.rglob("*")):
            if self._is_root and not path.is_symlink():
                os.chown(path, NOBODY, NOBODY)
            if path.is_dir():
                path.chmod(0o755)

    def forbid(self, folder: Path, mode: int = 0o555) -> None:
        """Let nobody write a folder; with mode 0, let nobody read it."""
        if self._is_root:
            os.chown(folder, 0, 0)
        folder.chmod(mode)

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run llmctl as the guest."""
        user = NOBODY if self._is_root else None
        return forkserver.run(*arguments, stdin=stdin, env=self.machine.env, cwd=self.home, user=user)


def forbid_all(guest: Guest) -> None:
    for folder in (guest.home, *(path for path in guest.home.rglob("*") if path.is_dir())):
        guest.forbid(folder)


@POSIX
def test_a_machine_that_cannot_be_written_does_what_needs_no_writing(guest: Guest) -> None:
    (guest.home / "hf" / "token").write_text("hf_good")
    forbid_all(guest)
    for command in ("models list", "models info acme/tiny", "download acme/tiny --verify", "whoami", "config show"):
        done = guest.run(*command.split())
        assert done.returncode == 0, done.stderr
    again = guest.run("download", "acme/tiny")
    assert again.returncode == 0, again.stderr
    assert "--model acme/tiny" in again.stderr, "it says how to use the model that it cannot remember"


@POSIX
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("use acme/tiny", ("--model acme/tiny", "LLMCTL_HOME")),
        ("use --forget", ("current_model.json",)),
        ("login", ("stored_tokens", "HF_HOME")),
        ("logout", ("token",)),
        ("models rm acme/tiny --yes", ("cache folder",)),
        ("config init", ("llmctl.yaml", "Permission denied")),
        ("plan acme/tiny --write plan.yaml", ("--write plan.yaml",)),
        ("score --input rows.jsonl --output scores.jsonl", ("--output scores.jsonl",)),
        ("generate --input rows.jsonl --output out.jsonl", ("--output out.jsonl",)),
        ("quantize acme/tiny --quant 4bit --output new", ("new",)),
        ("doctor --report", ("llmctl-report.md",)),
    ],
)
def test_a_command_whose_work_is_to_write_names_the_place_before_it_begins(
    command: str, words: tuple[str, ...], guest: Guest
) -> None:
    (guest.home / "hf" / "token").write_text("hf_good")
    (guest.home / "rows.jsonl").write_text('{"text": "x", "prompt": "x"}\n')
    forbid_all(guest)
    asked = len(guest.machine.hub.asked("/resolve/"))
    done = guest.run(*command.split(), stdin="hf_good")
    assert_is_one_message(done, 3, *words)
    assert len(guest.machine.hub.asked("/resolve/")) == asked


@POSIX
@pytest.mark.parametrize("folder", [".", "blobs", "snapshots", "refs", "llmctl"])
def test_a_download_into_a_folder_of_another_user_ends_before_the_first_byte(folder: str, guest: Guest) -> None:
    repo = guest.machine.repo("acme/tiny")
    shutil.rmtree(repo)
    (repo / folder).mkdir(parents=True)
    guest.allow(guest.home)
    guest.forbid(repo / folder)
    asked = len(guest.machine.hub.asked("/resolve/"))
    assert_is_one_message(guest.run("download", "acme/tiny"), 3, str(repo), "Permission denied", "HF_HOME")
    assert len(guest.machine.hub.asked("/resolve/")) == asked


@POSIX
def test_what_cannot_be_read_is_named(guest: Guest) -> None:
    (guest.home / "llmctl.yaml").write_text("seed: 1\n")
    guest.forbid(guest.machine.repo("acme/tiny"), 0)
    guest.allow(guest.home / "llmctl.yaml")
    listed = guest.run("models", "list")
    assert listed.returncode == 0
    assert "acme/tiny is not listed" in listed.stderr
    guest.forbid(guest.home / "llmctl.yaml", 0)
    assert "llmctl.yaml: Permission denied" in guest.run("config", "show").stderr
