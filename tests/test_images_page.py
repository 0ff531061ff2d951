"""The page of images has every family of the test material, and no defect."""

import transformers

from support.vision.families import FAMILIES
from support.vision.page import PAGE, is_defect, read_page, render


def test_the_page_has_a_row_for_every_family() -> None:
    _, rows = read_page(PAGE.read_text(encoding="utf-8"))
    assert [row["family"].strip("`") for row in rows] == sorted(FAMILIES), "run: make images"
    assert [row["family"] for row in rows if is_defect(row)] == []


def test_the_page_is_as_make_images_writes_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    version, rows = read_page(text)
    assert render(version, rows) == text
    assert version.split(".")[0] == transformers.__version__.split(".")[0]
