"""The tokens of an image of a given size, counted with the model's own processor and without its weights."""

from dataclasses import dataclass
from pathlib import Path

from llmctl import transformers_compat as compat
from llmctl.errors import UserError
from llmctl.generation.image_processor import load_image_processor
from llmctl.generation.pictures.picture import Picture
from llmctl.model.info import ModelInfo
from llmctl.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ImageTokens:
    """The result of processing one image.

    Attributes:
        tokens: Tokens in the prompt, with those that mark its rows, its beginning and its end.
        backend: The package that resizes images: Pillow or torchvision.
        input_bytes: Bytes of the tensors for the towers.
    """

    tokens: int
    backend: str
    input_bytes: int


def count_image_tokens(
    folder: Path, info: ModelInfo, *, width: int, height: int, count: int = 1, max_tokens: int | None = None
) -> ImageTokens:
    """Return the tokens of an image of `width` x `height` pixels, one of `count` in its prompt.

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
        image = processor.process([picture] * min(count, 2))[-1]  # one processor divides only a single image
    tokens = len(tokenizer(image.text, add_special_tokens=False)["input_ids"])
    return ImageTokens(tokens, processor.backend, image.size_bytes)
