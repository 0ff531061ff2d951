"""Images on the page: attached, scaled down, sent, shown and stored within a limit."""

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.page import Scripted, answered, say

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser]
Server = tuple[Scripted, str]
KNOWN = "() => document.getElementById('model').textContent !== 'llmctl'"


def encoded(width: int, height: int, *, format_: str = "PNG", noise: bool = False) -> bytes:
    import random

    from PIL import Image

    size = (width, height)
    image = Image.new("RGB", size, "red")
    if noise:
        image = Image.frombytes("RGB", size, random.Random(width).randbytes(3 * width * height))
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


def attach(page: "Page", *files: tuple[str, bytes], kind: str = "image/png") -> None:
    page.set_input_files(
        "#attach-files", files=[{"name": name, "mimeType": kind, "buffer": data} for name, data in files]
    )


def sent(script: Scripted, message: int = 0) -> list[Any]:
    parts: list[Any] = script.bodies[-1]["messages"][message]["content"]
    return parts


def image_of(part: Any) -> Any:
    from PIL import Image

    header, _, data = part["image_url"]["url"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert header == f"data:image/{image.format.lower()};base64"  # type: ignore[union-attr]
    return image


def test_images_are_sent_before_the_text_and_shown_in_the_conversation(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    assert page.get_attribute("#attach", "title") == "Attach images or text files"
    attach(page, ("a <b>.png", encoded(60, 40)), ("other.png", encoded(9, 9)))
    page.wait_for_selector("#attached li >> nth=1")
    assert page.get_attribute("#attached img >> nth=0", "alt") == "a <b>.png"
    assert page.inner_text("#status") == "Attached: a <b>.png, other.png"
    page.focus("[aria-label='Remove: other.png']")
    page.keyboard.press("Enter")
    assert page.inner_text("#status") == "Removed: other.png"
    say(page, "what is it?")
    answered(page, 1)
    image, text = sent(script)
    assert text == {"type": "text", "text": "what is it?"}
    assert image_of(image).size == (60, 40)
    assert image_of(image).convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    page.reload()
    assert page.get_attribute(".user img", "alt") == "a <b>.png"
    page.wait_for_function("() => document.querySelector('.user img').naturalWidth === 60")
    say(page, "and now?")
    answered(page, 2)
    assert sent(script)[0] == image
    assert script.bodies[-1]["messages"][2]["content"] == "and now?"


def test_an_image_alone_is_a_message_that_can_be_edited(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    attach(page, ("a.png", encoded(8, 8)))
    page.wait_for_selector("#attached li")
    page.click("#send")
    answered(page, 1)
    assert [part["type"] for part in sent(script)] == ["image_url"]
    page.locator("[aria-label=Edit]").click()
    assert page.locator("#attached img").count() == 1
    say(page, "look")
    answered(page, 1)
    assert [part["type"] for part in sent(script)] == ["image_url", "text"]


def test_large_images_are_scaled_down_and_lose_their_metadata(page: "Page", scripted: Server) -> None:
    from PIL import Image

    script, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    photo = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a secret place"
    Image.new("RGB", (3000, 1000), "blue").save(photo, "JPEG", exif=exif)
    attach(page, ("noise.png", encoded(3000, 1500, noise=True)))
    page.wait_for_selector("#attached li")
    attach(page, ("photo.jpg", photo.getvalue()), kind="image/jpeg")
    page.wait_for_selector("#attached li >> nth=1")
    say(page, "look")
    answered(page, 1)
    first, second = (image_of(part) for part in sent(script)[:2])
    assert (first.size, first.format) == ((2048, 1024), "JPEG")
    assert (second.size, second.format) == ((2048, 683), "JPEG")
    assert b"secret" not in base64.b64decode(sent(script)[1]["image_url"]["url"].partition(",")[2])


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_are_attached_by_dropping_and_pasting_them(how: str, page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    page.evaluate(
        "async ([how, base64]) => {"
        " const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));"
        " const data = new DataTransfer(); data.items.add(new File([bytes], 'given.png', { type: 'image/png' }));"
        " const event = how === 'drop'"
        " ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })"
        " : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });"
        " document.getElementById(how === 'drop' ? 'main' : 'prompt').dispatchEvent(event); }",
        [how, base64.b64encode(encoded(8, 8)).decode()],
    )
    page.wait_for_selector("#attached img[alt='given.png']")


def test_a_model_that_takes_no_images_is_named_as_the_reason(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.inputs = ["text"]
    page.goto(address)
    page.wait_for_function(KNOWN)
    assert page.get_attribute("#attach", "aria-label") == "Attach text files (this model takes no images)"
    attach(page, ("a.png", encoded(8, 8)))
    page.wait_for_function("() => document.getElementById('problem').textContent")
    assert page.inner_text("#problem") == "a.png is an image, and this model takes none."
    assert page.locator("#attached li").count() == 0


def test_a_server_that_does_not_say_what_its_model_takes_gets_images(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.inputs = None
    page.goto(address)
    page.wait_for_function(KNOWN)
    attach(page, ("a.png", encoded(8, 8)))
    page.wait_for_selector("#attached img")


def test_what_the_browser_cannot_read_is_named(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    attach(page, ("broken.png", encoded(8, 8)[:20]))
    page.wait_for_function("() => document.getElementById('problem').textContent")
    assert "broken.png is not an image that this browser can read" in page.inner_text("#problem")


def test_the_oldest_images_are_not_kept_and_the_page_says_so(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    page.wait_for_function(KNOWN)
    for number, name in enumerate(("old.png", "new.png"), 1):
        attach(page, (name, encoded(1800 + number, 1500, noise=True)))
        page.wait_for_selector("#attached li")
        say(page, name)
        answered(page, number)
    assert "The oldest are no longer kept" in page.inner_text("#problem")
    assert len(sent(script)) == 2, "until the page is loaded again, the conversation has both"
    page.reload()
    assert page.locator(".user img").count() == 1
    assert page.get_attribute(".user img", "alt") == "new.png"
    assert "old.png: no longer kept" in page.inner_text(".user >> nth=0")
    say(page, "and?")
    answered(page, 3)
    assert sent(script)[0] == {"type": "text", "text": "(The image old.png is no longer available.)"}
    assert sent(script, 2)[0]["type"] == "image_url"
