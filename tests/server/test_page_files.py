"""The files of the page, without a browser."""

import re
from importlib.resources import files

import pytest

from llmctl.server.routes import open_paths
from llmctl.server.routes.page import FILES, OPEN_PATHS, read


def test_exactly_the_files_of_the_page_are_served() -> None:
    page_files = {
        one.name
        for one in files("llmctl.server").joinpath("page").iterdir()
        if one.name.endswith(("html", "css", "js", "svg"))
    }
    assert {name for name, _ in FILES.values()} == page_files
    for path in OPEN_PATHS:
        assert read(path)[0]
    for path in ("/../app.py", "/__init__.py", "/page.css/"):
        with pytest.raises(KeyError):
            read(path)


def test_only_the_page_and_health_need_no_key() -> None:
    assert open_paths() == OPEN_PATHS | {"/health", "/ready"}


def test_scripts_import_only_served_files_and_never_parse_text_as_html() -> None:
    for path in (path for path in OPEN_PATHS if path.endswith(".js")):
        script = read(path)[0].decode()
        imported = set(re.findall(r'from "\./([^"]+)"', script))
        assert {f"/{name}" for name in imported} <= OPEN_PATHS
        assert len(imported) == len(re.findall(r"^import |import\(", script, re.MULTILINE))
        assert not re.findall(
            r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", script
        )


def test_the_page_has_no_inline_code_and_no_external_resources() -> None:
    page, style = read("/")[0].decode(), read("/page.css")[0].decode()
    assert not re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)|javascript:", page)
    assert not re.findall(r"(?:src|href)=\"(?:\w+:|//)", page)
    assert not re.findall(r"url\(|@import", style)
