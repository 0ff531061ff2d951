"""Pictures in data URLs."""

import base64
from urllib.parse import quote

import pytest

from llmctl.errors import UserError
from llmctl.generation.pictures import PictureLimits, bytes_of_data_url, is_data_url

FILE = bytes(range(256)) + b"x"
BASE64 = base64.b64encode(FILE).decode()
LIMITS = PictureLimits(file_bytes=1000)


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/svg+xml;charset=utf-8;base64,{BASE64}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        "data:image/png;base64,\n" + "\r\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76)),
        f"data:image/png;base64,{quote(BASE64)}",
        f"data:image/png,{quote(FILE)}",
        f"data:image/png;name=a%2Cb,{quote(FILE)}",
    ],
)
def test_the_file_in_a_data_url_is_returned(text: str) -> None:
    assert is_data_url(text)
    assert bytes_of_data_url(text, LIMITS) == FILE


REFUSED = {
    "another scheme": ("https://example.org/a.png", "must begin with data:"),
    "no comma": (f"data:image/png;base64{BASE64}", "has no comma"),
    "a comma far away": ("data:" + "a" * 1000 + ",x", "has no comma"),
    "no media type": (f"data:;base64,{BASE64}", "has no media type"),
    "half a media type": (f"data:image;base64,{BASE64}", "is malformed"),
    "text": ("data:text/plain,hello", "of type text/plain is not an image"),
    "empty": ("data:image/png;base64,", "has no data"),
    "characters outside base64": ("data:image/png;base64,abc$def", r"has the character '\$' at 4"),
    "the URL-safe alphabet": ("data:image/png;base64,ab_d", "URL-safe alphabet"),
    "an incomplete base64": ("data:image/png;base64,abcde", r"malformed or incomplete \(5 characters\)"),
    "padding in the middle": ("data:image/png;base64,ab==abcd", "malformed or incomplete"),
    "percent without digits": ("data:image/png,a%2", "% at character 2"),
    "letters outside ASCII": ("data:image/png;base64,abcé", "is not ASCII: character 4"),
    "too large in base64": ("data:image/png;base64," + "A" * 1400, "more than 1 kB"),
    "too large in percent": ("data:image/png," + "%00" * 1001, "more than 1 kB"),
    "very long": ("data:image/png;base64," + "A" * 10_000, "more than 1 kB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_faulty_data_url_is_refused_with_its_fault(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as caught:
        bytes_of_data_url(text, LIMITS)
    assert caught.value.hint
    assert len(str(caught.value)) < 200, "the data is not repeated"
