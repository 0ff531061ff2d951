"""The tokens of an image of a given size, counted with the model's own processor and without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl import transformers_compat as compat
from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, UserError
from llmctl.generation.image_processor import ImageProcessor, load_image_processor
from llmctl.generation.media import with_pictures
from llmctl.generation.pictures.picture import Picture
from llmctl.generation.prompt import Messages, encode_prompts
from llmctl.model.info import ModelInfo
from llmctl.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImageTokens:
    """The result of processing images of one size.

    Attributes:
        tokens: Tokens of one image in the prompt, with those that mark its rows, its beginning and its end.
        all_tokens: Tokens of all images.
        backend: The package that resizes images: Pillow or torchvision.
        input_bytes: Bytes of the tensors for the towers, of one image.
    """

    tokens: int
    all_tokens: int
    backend: str
    input_bytes: int


def count_image_tokens(
    folder: Path, info: ModelInfo, *, width: int, height: int, count: int = 1, max_tokens: int | None = None
) -> ImageTokens:
    """Return the tokens of `count` images of `width` x `height` pixels in one prompt.

    Prompts with and without images are compared, since chat templates write more tokens around images.

    Args:
        folder: Folder of the files of the tokenizer and the processor.
        max_tokens: Maximum tokens to which an image is shrunk; None for the processor's own limits.

    Raises:
        UserError: the model takes no images, or refuses one of this size.
        MachineError: a package is missing.
        ModelError: the files of the processor are missing or damaged.
    """
    arguments = {"padding_side": "left", "trust_remote_code": False}
    with compat.quiet_libraries():
        if compat.composite_model_class(info.model_type) is None:
            raise UserError(f"{info.source} takes no images", hint="omit --images")
        tokenizer = load_tokenizer(folder, arguments, source=info.source, info=info)
        processor = load_image_processor(folder, tokenizer, info.config, source=info.source, max_tokens=max_tokens)
        picture = Picture.of(width=width, height=height, pixels=bytes(3 * width * height))
        lengths = _lengths(tokenizer, processor, picture, min(count, 3))
        [image] = processor.process([picture])
    # one processor divides only a single image, so the second image can add less than the first
    further = lengths[-1] - lengths[-2]
    all_tokens = lengths[-1] - lengths[0] + (count - len(lengths) + 1) * further
    return ImageTokens(further, all_tokens, processor.backend, image.size_bytes)


@dataclass(frozen=True)
class _Loaded:
    """A processor that is loaded, for the encoding of prompts."""

    processor: ImageProcessor
    takes_images: bool = True

    def __call__(self) -> ImageProcessor:
        return self.processor


def _lengths(tokenizer: "PreTrainedTokenizerBase", processor: ImageProcessor, picture: Picture, most: int) -> list[int]:
    """Return the tokens of prompts with 0, 1, … `most` images."""
    prompts: list[str | Messages] = ["x", *(with_pictures("x", [picture] * count) for count in range(1, most + 1))]
    lengths = []
    for encoded in encode_prompts(tokenizer, [(one, ChatSection()) for one in prompts], processor=_Loaded(processor)):
        if isinstance(encoded, LlmctlError):
            raise encoded
        lengths.append(len(encoded))
    return lengths
