"""A browser for the tests of the page, and a server whose model says what it is told to."""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.support.page import Scripted

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: make test-page")
    with playwright.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A new browser's page. No error may show in its console, and nothing may leave its origin."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    one = context.new_page()
    wrong: list[str] = []
    own = ("http://127.0.0.1:", "blob:http://127.0.0.1:")
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("console", lambda said: wrong.append(said.text) if said.type == "error" and "401" not in said.text else None)
    one.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    one.set_default_timeout(15_000)
    yield one
    context.close()
    assert wrong == []


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    """A scripted server and its address."""
    import uvicorn

    script = Scripted()
    server = uvicorn.Server(uvicorn.Config(script.app(), port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield script, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
