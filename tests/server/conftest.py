"""Fixtures: a browser for the tests of the page, and a server with scripted answers."""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.support.page import Scripted

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page


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
def page(browser: "Browser", request: pytest.FixtureRequest) -> Iterator["Page"]:
    """Yield a new browser page. Fail if it logs an error or sends a request to another origin."""
    if "scripted" in request.fixturenames:
        request.getfixturevalue("scripted")  # started first, so that it ends after the page
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    one = context.new_page()
    errors: list[str] = []

    def is_error(message: "ConsoleMessage") -> bool:
        return message.type == "error" and "401" not in message.text

    own = ("http://127.0.0.1:", "blob:http://127.0.0.1:")
    one.on("pageerror", lambda error: errors.append(str(error)))
    one.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    one.on("request", lambda request: None if request.url.startswith(own) else errors.append(request.url))
    one.set_default_timeout(15_000)
    yield one
    context.close()
    assert errors == []


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    """Yield a server with scripted answers, and its address."""
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
