"""The images of a prompt, processed for the model that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import UserError
from llmctl.generation.media import Media, locate_media, pictures_in

if TYPE_CHECKING:
    from llmctl.generation.image_processor import ImageProcessor, ProcessedImage


class ProcessorSource(Protocol):
    """Gives the image processor of a model when a prompt needs it."""

    @property
    def takes_images(self) -> bool:
        """True if the model is composite, so that plain transformers would use its processor."""

    def __call__(self) -> "ImageProcessor":
        """Return the processor. Raise UserError if the model takes no images."""


@dataclass(frozen=True)
class PromptImages:
    """The images of a prompt, in order, with the processor that made them."""

    processor: "ImageProcessor"
    images: "tuple[ProcessedImage, ...]"

    def expand(self, text: str) -> str:
        """Replace the placeholders in a rendered prompt by the texts of the images."""
        return self.processor.expand(text, self.images)

    def media(self, ids: Sequence[int]) -> tuple[Media, ...]:
        """Return the media of a prompt. Raise ValueError if it has not as many placeholders as the images."""
        return locate_media(ids, self.images, self.processor.token_id)


def process_images(
    prompt: "str | Sequence[Mapping[str, Any]]", processor: ProcessorSource | None
) -> PromptImages | None:
    """Return the images of a prompt, processed; None without any.

    Raises:
        UserError: the model takes no images, or refuses a picture.
        MachineError: a package is missing.
    """
    pictures = pictures_in(prompt)
    if not pictures:
        return None
    if processor is None:
        raise UserError("images cannot be used here", details={"param": "messages"})
    loaded = processor()
    return PromptImages(loaded, tuple(loaded.process(pictures)))
