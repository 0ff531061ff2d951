"""Draw docs/images/page*.png: the page of llmctl serve in Chromium, with a scripted conversation.

The answers come from the scripted server of the tests, so that the pictures are the same on every machine. It needs
playwright and Chromium (`make test-page` installs playwright).
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.page import Scripted, answered, say  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
QUESTION = "Which sort should I use? Compare three, and show the simplest."
FIRST = "Use the sort of your language's library, unless you must write your own: it is tested and fast.\n"
ANSWER = '''It depends on the size of the list and on how sorted it is already:

| Sort | Typical time | Memory | Good for |
| :-- | --: | :-: | :-- |
| Insertion | n² | 1 | short or nearly sorted lists |
| Merge | n log n | n | linked lists, stable results |
| Quick | n log n | log n | arrays in memory |

The simplest is the **insertion sort**:

```python
def insertion_sort(items: list[int]) -> list[int]:
    """Sort a list in place."""
    for end in range(1, len(items)):
        item, at = items[end], end
        while at > 0 and items[at - 1] > item:
            items[at] = items[at - 1]  # make room
            at -= 1
        items[at] = item
    return items
```

It needs no further memory and stops early where the list is sorted.'''
NOTES = b"Lists have up to 200 entries.\nMost of them are nearly sorted.\n"


@contextmanager
def scripted_server() -> Iterator[tuple[Scripted, str]]:
    """Yield a server with scripted answers, and its address."""
    script = Scripted()
    script.model, script.seed, script.tokens, script.prompt_tokens = "example/model", 1914271, 212, 61
    script.defaults = {"max_model_len": 8192, "max_tokens": 512, "seed": None, "system": None}
    script.defaults |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}
    server = uvicorn.Server(uvicorn.Config(script.app(), port=0, log_config=None, lifespan="off"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    yield script, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True


def converse(page: Page, script: Scripted, address: str) -> None:
    """Make a conversation whose answer has two versions, and two further conversations."""
    page.goto(address)
    for text in ("Explain B-trees to a beginner", "A name for a small sailing boat"):
        script.says = ["Of course."]
        say(page, text)
        answered(page, 1)
        page.click("#new" if page.is_visible("#new") else "#drawer-open")
        if page.is_visible("#drawer-close"):
            page.click("#new")
    page.set_input_files("#attach-files", files=[{"name": "notes.txt", "mimeType": "text/plain", "buffer": NOTES}])
    page.wait_for_selector("#attached li")
    script.says = [FIRST]
    say(page, QUESTION)
    answered(page, 1)
    script.says = [ANSWER]
    script.logprobs = [
        {"token": token, "logprob": logprob, "top_logprobs": [{"token": token, "logprob": logprob}, *others]}
        for token, logprob, others in (
            ("It", -0.22, [{"token": "The", "logprob": -1.9}]),
            (" depends", -0.04, [{"token": " is", "logprob": -3.6}]),
            (" on", -0.01, [{"token": ",", "logprob": -5.1}]),
            (" the", -0.92, [{"token": " how", "logprob": -0.71}]),
        )
    ]
    page.click("[aria-label='Another answer']")
    page.wait_for_selector(".version")
    answered(page, 1)
    page.evaluate("getSelection().empty(); document.getElementById('main').scrollTop = 0")


def draw(browser: Browser, script: Scripted, address: str, *, viewport: dict[str, int], scheme: str) -> None:
    """Draw the conversation; in wide and light, also the details of its answer and the settings."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    converse(page, script, address)
    name = "page" + ("-narrow" if viewport is NARROW else "") + ("-dark" if scheme == "dark" else "")
    page.screenshot(path=IMAGES / f"{name}.png")
    if name == "page":
        page.click("[aria-label='Details']")
        page.evaluate("document.getElementById('main').scrollTop = 1e6")
        page.screenshot(path=IMAGES / "page-details.png")
        page.click("#settings-open")
        page.screenshot(path=IMAGES / "page-settings.png")
    context.close()


def main() -> None:
    """Draw every picture."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as play, scripted_server() as (script, address):
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for viewport in (WIDE, NARROW):
            for scheme in ("light", "dark"):
                draw(browser, script, address, viewport=viewport, scheme=scheme)
        browser.close()


if __name__ == "__main__":
    main()
