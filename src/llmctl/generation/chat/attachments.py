"""The images of a conversation's messages, with the files that they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import UserError
from llmctl.generation.image_input import ImageSource, image_source, read_images
from llmctl.generation.media import media_from
from llmctl.generation.pictures import Picture


@dataclass(frozen=True)
class Attachment:
    """An image of a message.

    Attributes:
        picture: The decoded image.
        file: The file that it comes from; None if it was given as bytes or a PIL image.
    """

    picture: Picture
    file: Path | None = None

    @property
    def part(self) -> dict[str, Any]:
        """The image as a part of a message."""
        return {"type": "image", "image": self.picture}

    @property
    def name(self) -> str:
        """The name of the file, or the size."""
        return self.file.name if self.file is not None else f"{self.picture.width} x {self.picture.height}"

    def document(self) -> dict[str, Any]:
        """Return the image as JSON values: its hash and the path of its file.

        Raises:
            UserError: it comes from no file.
        """
        if self.file is None:
            raise UserError(
                f"an image of the conversation ({self.name}) comes from no file, so it cannot be saved",
                hint="give images as paths",
            )
        return {"kind": "image", "sha256": self.picture.sha256, "path": str(self.file)}


def attach(images: "Sequence[ImageSource | Attachment]") -> tuple[Attachment, ...]:
    """Read images. Raise UserError for the first that cannot be read."""
    sources = [one if isinstance(one, Attachment) else image_source(one) for one in images]
    pictures = read_images([one.picture if isinstance(one, Attachment) else one for one in sources])
    return tuple(
        one if isinstance(one, Attachment) else Attachment(picture, one.absolute() if isinstance(one, Path) else None)
        for one, picture in zip(sources, pictures, strict=True)
    )


def attachments_from(value: Any) -> tuple[Attachment, ...]:
    """Read the images in a list of values that `Attachment.document` returned.

    Raises:
        ValueError: a value has another form.
        UserError: a file is missing, or is another picture now.
    """
    media = media_from(value)
    paths = [one.get("path") if isinstance(one, Mapping) else None for one in value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError("media must have the path of its file")
    attachments = attach([Path(str(path)) for path in paths])
    for one, recorded in zip(attachments, media, strict=True):
        if one.picture.sha256 != recorded.sha256:
            raise UserError(
                f"{one.file} is no longer the picture of this message",
                hint="restore the picture, or remove `media` from the message to continue without it",
            )
    return attachments
