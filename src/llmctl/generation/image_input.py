"""Prompts whose images are files, bytes or PIL images, as callers give them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from llmctl.errors import LlmctlError, UserError
from llmctl.generation.media import with_pictures
from llmctl.generation.pictures import Picture, read_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = Union[str, Path, bytes, Picture, "Image"]


def with_images(prompt: Any, images: Sequence[ImageSource] = ()) -> Any:
    """Return a prompt whose images are decoded pictures.

    Args:
        prompt: A text, or messages. Parts of the form {"type": "image", "image": source} are read.
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
    sources = list(_sources(prompt))
    if not sources:
        return prompt
    pictures = iter(read_images(sources))
    return [_with_pictures(message, pictures) for message in prompt]


def read_images(sources: Sequence[ImageSource]) -> list[Picture]:
    """Return the pictures of sources. Raise the first error, one of those of `with_images`."""
    given = [Path(one) if isinstance(one, str) else one for one in sources]
    results = iter(read_pictures([one for one in given if not isinstance(one, Picture)]))
    pictures = [one if isinstance(one, Picture) else next(results) for one in given]
    for picture in pictures:
        if isinstance(picture, LlmctlError):
            raise picture
    return [picture for picture in pictures if isinstance(picture, Picture)]


def _sources(messages: Sequence[Any]) -> Iterator[ImageSource]:
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                if "image" not in part:
                    raise UserError('a part of type image needs "image": a path, bytes or a PIL image')
                yield part["image"]


def _with_pictures(message: Mapping[str, Any], pictures: Iterator[Picture]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    parts = [
        {**part, "image": next(pictures)} if isinstance(part, Mapping) and part.get("type") == "image" else part
        for part in content
    ]
    return {**message, "content": parts}
