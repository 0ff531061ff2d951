"""The page of architectures has every type, and a sample of all kinds of layers answers as plain transformers does."""

from pathlib import Path

import pytest
import transformers

from support.architectures.cases import Case, all_cases
from support.architectures.checks import BRIEF, check
from support.architectures.page import PAGE, Row, read_page, render

# At least one type for each kind of layer that changes how sequences are computed, cached or quantised.
_KINDS = {
    "full and sliding attention": "qwen3 gemma2 cohere2",
    "chunked attention": "llama4_text",
    "longrope": "phi3",
    "attention sinks": "gpt_oss",
    "learned positions, ALiBi": "gpt2 opt bloom mpt",
    "differential attention": "diffllama",
    "mixtures of experts": "mixtral granitemoe",
    "latent and indexed attention": "deepseek_v3 minicpm3 deepseek_v32",
    "recurrent states": "qwen3_next mamba bamba lfm2 recurrent_gemma",
}
SAMPLE = [Case(name, False) for names in _KINDS.values() for name in names.split()]
SAMPLE += [Case("gemma3", True), Case("qwen3_5", True)]


@pytest.fixture(scope="module")
def page() -> tuple[str, dict[Case, Row]]:
    version, rows, _ = read_page(PAGE.read_text(encoding="utf-8"))
    return version, {row.case: row for row in rows}


def test_the_page_has_a_row_for_every_type_of_the_installed_transformers(page: tuple[str, dict[Case, Row]]) -> None:
    version, rows = page
    if transformers.__version__ == version:
        assert set(rows) == set(all_cases()), "run: make architectures"
    else:  # the oldest supported release, or one that is newer than the page
        assert len(set(rows) & set(all_cases())) > 150


def test_the_totals_of_the_page_are_those_of_its_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render(*read_page(text)) == text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.model_type)
def test_a_tiny_model_answers_as_plain_transformers_alone_packed_and_from_cached_prefixes(
    case: Case, tmp_path: Path
) -> None:
    outcome = check(case.model_type, is_composite=case.is_composite, folder=tmp_path, scope=BRIEF)
    answers = ("built", "transformers", "loads", "answers", "packed", "prefix cache", "4 bits")
    assert not {"WRONG", "ERROR"} & {outcome.cells[name] for name in answers}, outcome.notes
    assert outcome.cells["answers"] == outcome.cells["4 bits"] == "yes"
