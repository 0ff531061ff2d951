"""Prompts of the command line: text and images from flags, files and standard input."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli._flags import IMAGE, PROMPT, PROMPT_ARGUMENT, PROMPT_FILE
from llmctl.cli._options import Options
from llmctl.cli._text_input import read_prompt, stdin_bytes
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.generation.pictures import Picture
    from llmctl.loading.prepare import Prepared
    from llmctl.plan.images import ImageRequest


@dataclass(frozen=True)
class PromptInput:
    """A prompt as it was given.

    Attributes:
        text: The text.
        files: The names of the images; `-` is standard input.
        pictures: The images.
    """

    text: str
    files: tuple[str, ...] = ()
    pictures: "tuple[Picture, ...]" = ()

    @property
    def prompt(self) -> Any:
        """The prompt as the library takes it: the text, or a message with the images before it."""
        from llmctl.generation.media import with_pictures

        return with_pictures(self.text, self.pictures) if self.pictures else self.text

    @property
    def images_to_plan(self) -> "ImageRequest | None":
        """The images as a plan takes them: all as large as the largest."""
        from llmctl.plan.images import ImageRequest

        if not self.pictures:
            return None
        largest = max(self.pictures, key=lambda picture: picture.width * picture.height)
        return ImageRequest(len(self.pictures), largest.width, largest.height)

    def images_document(self) -> dict[str, Any]:
        """Return the images as JSON values; empty without any."""
        if not self.pictures:
            return {}
        images = [
            {"file": file, "width": picture.width, "height": picture.height, "sha256": picture.sha256}
            for file, picture in zip(self.files, self.pictures, strict=True)
        ]
        return {"images": images}


def read_prompt_input(options: Options) -> PromptInput:
    """Read the prompt and the images that flags name.

    Raises:
        UserError: there is no prompt, or an image cannot be read.
        MachineError: Pillow is missing.
    """
    files, text = options[IMAGE], options.either(PROMPT_ARGUMENT, PROMPT)
    from_stdin = [str(file) == "-" for file in files]
    if sum(from_stdin) > 1 or (any(from_stdin) and text == "-"):
        raise UserError("standard input can be read once: as one image, or as the prompt", hint="give files for others")
    prompt = read_prompt(text, options[PROMPT_FILE], reads_stdin=not any(from_stdin))
    return PromptInput(prompt, tuple(map(str, files)), read_image_files(files))


def read_image_files(files: Sequence[Path]) -> "tuple[Picture, ...]":
    """Return the pictures in files; `-` is standard input. Errors are those of `read_prompt_input`."""
    if not files:
        return ()
    from llmctl.generation.image_input import read_images
    from llmctl.generation.pictures import PictureLimits

    limit = PictureLimits().file_bytes + 1  # what is longer is refused, so the rest is not read
    return tuple(read_images([stdin_bytes().read(limit) if str(file) == "-" else file.expanduser() for file in files]))


def check_takes_images(prepared: "Prepared") -> None:
    """Raise UserError if a model takes no images, and MachineError if a package for them is missing. Reads no weights.

    Errors of the tokenizer are those of `load_prompt_model`.
    """
    from llmctl.generation.image_processor import LazyImageProcessor
    from llmctl.loading.loader import apply_environment
    from llmctl.loading.model import load_prompt_model
    from llmctl.transformers_compat import quiet_libraries

    apply_environment(prepared.plan)
    with quiet_libraries():
        LazyImageProcessor(load_prompt_model(prepared))()
