"""The answers of each model family are read, streamed and enforced, with small templates of the same structure."""

from pathlib import Path
from typing import Any

import pytest

from llmctl.machine import sandbox
from llmctl.model.tokenizer import load_tokenizer
from support.families.checks import Checks
from support.families.reader import with_template
from support.families.table import FAMILIES, Family
from support.tiny import write_tokenizer

TEMPLATES = Path(__file__).parents[2] / "support" / "templates" / "families"
SMALL = [family for family in FAMILIES if family.small is not None]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, {}, source="acme/tiny")


def test_every_template_here_is_a_familys() -> None:
    assert {file.stem for file in TEMPLATES.glob("*.jinja")} == {family.small for family in SMALL}


@pytest.mark.parametrize("family", SMALL, ids=[family.name for family in SMALL])
def test_a_family_is_read_and_enforced(family: Family, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CAN_FORK_SAFELY", False)  # these templates need no process of their own
    template = (TEMPLATES / f"{family.small}.jinja").read_text(encoding="utf-8")
    outcomes = Checks(with_template(tokenizer, template, family), family).outcomes()
    wrong = {column: outcome for column, outcome in outcomes.items() if not outcome.startswith(("ok", "- "))}
    assert wrong == {}
