"""Media in prompts: which tokens stand for an image, and how they are told apart from those of another image."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llmctl.generation.image_processor import ProcessedImage
    from llmctl.generation.pictures import Picture


@dataclass(frozen=True)
class Media:
    """A part of a prompt that is not text, such as an image.

    Attributes:
        sha256: Hash of its content, in hexadecimal.
        positions: The positions in the prompt of the tokens that have its features, in ascending order.
        image: The processed image; None where only the hash is known, as in a transcript.
    """

    kind: Literal["image"]
    sha256: str
    positions: tuple[int, ...] = ()
    image: "ProcessedImage | None" = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """The hash of everything that determines its features."""
        return self.sha256 if self.image is None else self.image.key


def message_parts(prompt: Any) -> list[Mapping[str, Any]]:
    """Return the parts of all messages whose content is a list of parts."""
    if isinstance(prompt, str):
        return []
    contents = [message.get("content") for message in prompt if isinstance(message, Mapping)]
    lists = [content for content in contents if isinstance(content, list | tuple)]
    return [part for content in lists for part in content if isinstance(part, Mapping)]


def pictures_in(prompt: Any) -> "list[Picture]":
    """Return the pictures of all messages, in order: parts of the form {"type": "image", "image": Picture}."""
    return [part["image"] for part in message_parts(prompt) if part.get("type") == "image" and "image" in part]


def without_pictures(prompt: Any) -> Any:
    """Return messages as a chat template gets them: with parts {"type": "image"} in place of pictures."""
    if not pictures_in(prompt):
        return prompt
    placeholder = {"type": "image"}
    return [
        {
            **message,
            "content": [
                placeholder if isinstance(part, Mapping) and part.get("type") == "image" else part
                for part in message["content"]
            ],
        }
        if isinstance(message.get("content"), list | tuple)
        else message
        for message in prompt
    ]


def with_pictures(text: str, pictures: "Sequence[Any]") -> list[dict[str, Any]]:
    """Return a text and its pictures, or their sources, as the message of a user, the pictures first."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def cache_ids(ids: Sequence[int], media: Sequence[Media]) -> tuple[int, ...]:
    """Return ids in which each token of an image has a negative number of its own, a hash of the image and the place.

    Caches compare these ids, so that different images never share keys and values, and the same image does.
    """
    if not media:
        return tuple(ids)
    unique = list(ids)
    for one in media:
        seed = one.key.encode()
        for number, position in enumerate(one.positions):
            digest = hashlib.blake2b(number.to_bytes(8, "little"), key=seed[:64], digest_size=8).digest()
            unique[position] = -1 - (int.from_bytes(digest, "little") >> 1)
    return tuple(unique)


def locate_media(ids: Sequence[int], images: "Sequence[ProcessedImage]", token_id: int) -> tuple[Media, ...]:
    """Return the media of a prompt. Raise ValueError if the prompt has not as many placeholders as the images."""
    places = [position for position, token in enumerate(ids) if token == token_id]
    expected = sum(image.tokens for image in images)
    if len(places) != expected:
        raise ValueError(f"it has {len(places)} tokens for images, which need {expected}")
    media, begin = [], 0
    for image in images:
        positions = tuple(places[begin : begin + image.tokens])
        media.append(Media("image", image.sha256, positions, image))
        begin += image.tokens
    return tuple(media)


def media_document(media: Sequence[Media]) -> list[dict[str, str]]:
    """Return media as JSON values."""
    return [{"kind": one.kind, "sha256": one.sha256} for one in media]


def media_from(value: Any) -> tuple[Media, ...]:
    """Return the media in a value that `media_document` wrote. Raise ValueError for any other value."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError("media must be a list of objects with kind and sha256")
    if any(one.get("kind") != "image" or not isinstance(one.get("sha256"), str) for one in value):
        raise ValueError("media must have kind image and a sha256")
    return tuple(Media("image", one["sha256"]) for one in value)
