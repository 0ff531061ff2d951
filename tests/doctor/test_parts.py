"""The parts of the doctor: versions, the removal of secrets, and the child processes."""

import os
from pathlib import Path

import pytest

from llmctl.cli._render import Output
from llmctl.cli.doctor import _show as show_checks
from llmctl.doctor.children import Question, ask_all
from llmctl.doctor.environment import proxy_of, read_computer, read_requirements
from llmctl.doctor.findings import Check
from llmctl.doctor.privacy import known_tokens, without_secrets
from llmctl.hub.environment import without_credentials
from llmctl.versions import is_inside, release


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("5.24.0", ">=5.18,<6", True),
        ("6.0", "<6,>=5.18", False),
        ("6.0.0.dev1", ">=5.18,<6", False),
        ("2.13.0+cpu", ">=2.13", True),
        ("2.13", "==2.13.0", True),
        ("0.19.0", ">=0.18.2,<0.19.0", False),
        ("1.0", "!=2", True),
    ],
)
def test_a_version_is_inside_a_range_or_not(version: str, wanted: str, inside: bool) -> None:
    assert is_inside(version, wanted) is inside


def test_a_release_is_its_numbers() -> None:
    assert release("2.13.0+cu130") == (2, 13)
    assert release("unknown") == ()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://anna:secret@proxy:3128", "http://proxy:3128"),
        ("anna:secret@proxy:3128", "proxy:3128"),
        ("http://proxy:3128/", "http://proxy:3128/"),
        ("socks5://a:b@[::1]:1080", "socks5://[::1]:1080"),
        ("https://hub/?token=secret", "https://hub/"),
        ("http://anna:secret@proxy:notaport", "http://proxy:notaport"),
        ("http://anna:12/se@cret?@proxy:1", "http://proxy:1"),
    ],
)
def test_an_address_is_shown_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_the_proxy_depends_on_the_scheme_and_is_none_if_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:secret@proxy:1")
    assert proxy_of("https://hub") == "http://proxy:1"
    assert proxy_of("http://hub") is None
    monkeypatch.setenv("NO_PROXY", "hub")
    assert proxy_of("https://hub") is None


def test_tokens_credentials_and_the_home_folder_are_removed_from_a_text() -> None:
    text = "/home/anna/x /home/annabel/y hf_abcdefgh https://anna:pw@hub/ odd/token odd%2Ftoken"
    shown = without_secrets(text, secrets=["odd/token"], home=Path("/home/anna"))
    assert shown == "~/x /home/annabel/y (token) https://hub/ (secret) (secret)"


def test_the_tokens_of_the_environment_and_of_the_store_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    (tmp_path / "token").write_text("of-the-file\n")
    (tmp_path / "stored_tokens").write_text("[work]\nhf_token = of-the-store\n\n")
    assert {"of-the-environment", "of-the-file", "of-the-store"} <= set(known_tokens())


def test_questions_are_asked_in_parallel_and_answered_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_for_all = (
        "import pathlib, sys, time\n"
        "(here := pathlib.Path(__file__)).with_suffix('.begun').touch()\n"
        "while len(list(here.parent.glob('*.begun'))) < 4: time.sleep(0.01)\n"
    )
    for number in range(4):
        (tmp_path / f"slow{number}.py").write_text(f"{waits_for_all}__version__ = '{number}'\n")
    (tmp_path / "loud.py").write_text("print('{\"facts\": 1}'); import sys; sys.stderr.write('a warning')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = ask_all([Question(name, 120) for name in ("slow0", "slow1", "slow2", "slow3", "loud")])
    assert [answers[f"slow{n}"].trial.facts["version"] for n in range(4)] == ["0", "1", "2", "3"]
    assert answers["loud"].trial.outcome == "imported"
    assert answers["loud"].trial.talk.endswith("a warning")


def test_a_process_that_ends_without_an_answer_has_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves.py").write_text("import os; os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trial = ask_all([Question("leaves", 20)])["leaves"].trial
    assert (trial.outcome, trial.error) == ("crashed", "exit code 3")


def test_the_version_ranges_are_those_of_the_installed_package() -> None:
    found = read_requirements()
    assert "<6" in found.ranges["transformers"]
    assert "3.11" in found.tested_pythons
    assert "ruff" not in found.ranges


def test_this_computer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("https_proxy", "http://anna:secret@proxy:1")
    found = read_computer()
    assert found.usable_cores >= 1
    assert "secret" not in str(found)


def test_problems_come_first_and_the_other_checks_are_names_unless_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("torch", "ok", "2.13"), Check("threads", "warning", "idle cores"), Check("GPU", "broken", "none")]
    show_checks(Output(), checks)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[:3]] == [["broken", "GPU"], ["warning", "threads"], ["ok", "torch"]]
    assert "2.13" not in str(lines)
    show_checks(Output(verbose=True), checks)
    assert "2.13" in capsys.readouterr().out
