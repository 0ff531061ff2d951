"""Tiny checkpoints with real processors, which the tests of images use: plain transformers answers with every family.

LLMCTL_VISION_FAMILIES=1 checks all families, and LLMCTL_VISION_FAMILIES="gemma4 internvl" these.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.vision.build import build
from support.vision.conversations import CONVERSATIONS
from support.vision.families import FAMILIES
from support.vision.reference import NEW_TOKENS, Reference

_FEW = ("qwen3_vl", "gemma3", "mistral3", "paligemma")
_CHOSEN = os.environ.get("LLMCTL_VISION_FAMILIES", "").split()
_NAMES = tuple(FAMILIES) if _CHOSEN == ["1"] else tuple(_CHOSEN) or _FEW


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Plain transformers with a checkpoint of a family, made once."""
    root, made = tmp_path_factory.mktemp("vision"), dict[str, Reference]()

    def make(name: str) -> Reference:
        for package in FAMILIES[name].packages:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"the processor of {name} needs the package {package}")
        if name not in made:
            made[name] = Reference(build(name, root / name))
        return made[name]

    return make


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", _NAMES)
def test_plain_transformers_answers_or_the_table_has_its_error(
    name: str, conversation: str, references: Callable[[str], Reference]
) -> None:
    family, reference = FAMILIES[name], references(name)
    if conversation in family.cannot:
        with pytest.raises((ValueError, AttributeError), match=family.cannot[conversation]):
            reference.answer(conversation, family)
    else:
        assert len(reference.answer(conversation, family).ids) == NEW_TOKENS


@pytest.mark.parametrize("name", _NAMES)
def test_the_answer_depends_on_the_picture(name: str, references: Callable[[str], Reference]) -> None:
    family, reference = FAMILIES[name], references(name)
    if "one picture" in family.cannot:
        pytest.skip(family.cannot["one picture"])
    one = reference.answer("one picture", family)
    other = reference.answer("another picture of this size", family)
    assert one.prompt == other.prompt
    assert one.ids != other.ids


@pytest.mark.parametrize("name", _NAMES)
def test_a_checkpoint_is_the_same_each_time_it_is_built(name: str, tmp_path: Path) -> None:
    first, second = build(name, tmp_path / "first"), build(name, tmp_path / "second")
    files = sorted(file.name for file in first.iterdir())
    assert [(second / file).read_bytes() for file in files] == [(first / file).read_bytes() for file in files]
