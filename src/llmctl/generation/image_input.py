"""Prompts whose images are files, bytes or PIL images, as callers give them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llmctl.errors import LlmctlError, UserError
from llmctl.generation.media import message_parts, with_pictures
from llmctl.generation.pictures import Picture, bytes_of_data_url, is_data_url, read_pictures
from llmctl.paths import expand

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = Union[str, Path, bytes, Picture, "Image"]
_FORM = '{"type": "image", "image": path} or {"type": "image_url", "image_url": {"url": path or data URL}}'


def with_images(prompt: Any, images: Sequence[ImageSource] = ()) -> Any:
    """Return a prompt whose images are decoded pictures.

    Args:
        prompt: A text, or messages. Parts of the form {"type": "image", "image": source} are read, and OpenAI's parts
            {"type": "image_url", "image_url": {"url": …}} with data URLs and paths.
        images: Further images, which go before a text.

    Raises:
        UserError: a file is not a picture that can be read, or `images` come with messages.
        MachineError: Pillow is missing.
    """
    if isinstance(prompt, str):
        return with_pictures(prompt, read_images(images)) if images else prompt
    if images:
        raise UserError(
            "the images of a conversation belong to its messages",
            hint='give parts: {"type": "image", "image": path}',
        )
    if not count_images(prompt):
        return prompt
    prompt = with_image_sources(prompt)
    pictures = iter(read_images(list(image_sources(prompt))))
    return [_replaced(message, pictures) for message in prompt]


def read_images(sources: Sequence[ImageSource]) -> list[Picture]:
    """Return the pictures of sources. Raise the first error, one of those of `with_images`."""
    given = [image_source(one) for one in sources]
    results = iter(read_pictures([one for one in given if not isinstance(one, Picture)]))
    pictures = [one if isinstance(one, Picture) else next(results) for one in given]
    for picture in pictures:
        if isinstance(picture, LlmctlError):
            raise picture
    return [picture for picture in pictures if isinstance(picture, Picture)]


def image_source(value: Any, folder: Path | None = None) -> Any:
    """Return the source of a picture for `read_pictures`: texts are paths, relative to `folder`, or data URLs.

    Raises:
        UserError: the text is another URL, or a malformed data URL.
    """
    if not isinstance(value, str):
        return value
    if is_data_url(value):
        return bytes_of_data_url(value)
    scheme = value[:8].lower().partition(":")[0]
    if scheme in ("http", "https"):
        raise UserError("images are not fetched from URLs here", hint="download the picture, and give its path")
    path = expand(path_of_file_url(value) if scheme == "file" else value)
    return path if folder is None else folder / path


def path_of_file_url(url: str) -> str:
    """Return the path in a URL of the form file:///path."""
    return url2pathname(urlsplit(url).path)


def count_images(prompt: Any) -> int:
    """Return the number of images in the parts of messages."""
    return sum(_is_image(part) for part in message_parts(prompt))


def image_sources(prompt: Any) -> Iterator[Any]:
    """Yield the images in the parts of messages."""
    for part in message_parts(prompt):
        if part.get("type") == "image":
            yield part["image"]


def with_image_sources(messages: Sequence[Any], folder: Path | None = None) -> list[Any]:
    """Return messages whose images are all parts {"type": "image", "image": source}, with sources of `image_source`.

    Raises:
        UserError: a part has another form, or its image cannot be used.
    """
    sources = iter([image_source(_image_of(part), folder) for part in message_parts(messages) if _is_image(part)])
    return [_replaced(message, sources) for message in messages]


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def _image_of(part: Mapping[str, Any]) -> Any:
    image = part.get("image") if part["type"] == "image" else part.get("image_url")
    if part["type"] == "image_url" and isinstance(image, Mapping):
        image = image.get("url")
    if image is None or isinstance(image, Mapping | list | int | float):
        raise UserError(f"an image of a message must have the form {_FORM}")
    return image


def _replaced(message: Any, images: Iterator[Any]) -> Any:
    """Return a message with the next images in place of its own."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    parts = [{"type": "image", "image": next(images)} if _is_image(part) else part for part in content]
    return {**message, "content": parts}
