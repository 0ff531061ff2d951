"""The processor of a model that takes images: from a picture to the tokens and tensors that stand for it.

transformers' processors are used with llmctl's tokenizer and without their parts for video and sound, which need
further packages. An image processor in Pillow is taken if torchvision is missing.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl import transformers_compat as compat
from llmctl.errors import MachineError, ModelError, UserError, first_line
from llmctl.generation.image_size import shrunk, smaller_settings
from llmctl.model.towers import is_composite

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from llmctl.generation.pictures import Picture
    from llmctl.loading.model import PromptModel

_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """A picture as a model reads it.

    Attributes:
        key: Hash of the picture and of the settings of its processing, in hexadecimal. Equal keys give equal features.
        sha256: Hash of the picture as it was given.
        picture: The picture as it is processed: smaller than the one given if that had too many tokens.
        text: The text that stands for the image in a prompt, with `tokens` placeholder tokens.
        tokens: Number of tokens that have features of the image.
        token_id: The placeholder token.
        inputs: Arguments of the composite model for a prompt that has this image alone.
        settings: Settings of the image processor that differ from those in its files.
    """

    key: str
    sha256: str
    picture: "Picture" = field(repr=False)
    text: str
    tokens: int
    token_id: int
    inputs: "Mapping[str, Tensor]" = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors and of the picture."""
        return len(self.picture.pixels) + sum(tensor.nbytes for tensor in self.inputs.values())


class ImageProcessor:
    """transformers' processor of a model. Its state: the images that it processed last.

    Args:
        processor: transformers' processor.
        tokenizer: The model's tokenizer.
        token_id: The placeholder token, each of which takes one row of an image's features.
        max_tokens: Maximum tokens of one image, or None for the processor's own limits.
    """

    def __init__(
        self,
        processor: Any,
        tokenizer: "PreTrainedTokenizerBase",
        token_id: int,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self._processor, self._tokenizer, self.token_id, self._max_tokens = processor, tokenizer, token_id, max_tokens
        self._processed: OrderedDict[tuple[str, int], ProcessedImage] = OrderedDict()
        self._lock = Lock()
        self._settings = f"{type(processor).__name__} {type(processor.image_processor).__name__}"

    @property
    def backend(self) -> str:
        """The package that resizes images: Pillow or torchvision."""
        return "Pillow" if "Pil" in type(self._processor.image_processor).__name__ else "torchvision"

    @property
    def placeholder(self) -> str:
        """The text that a chat template writes for an image."""
        return str(self._processor.image_token)

    def process(self, pictures: "Sequence[Picture]") -> list[ProcessedImage]:
        """Return the images of one prompt. Raise UserError for a picture that the processor refuses."""
        with self._lock:
            return self._process_or_reuse(pictures)

    def _process_or_reuse(self, pictures: "Sequence[Picture]") -> list[ProcessedImage]:
        keys = [(picture.sha256, self._count_that_matters(len(pictures))) for picture in pictures]
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._processed}
        if self._count_that_matters(len(pictures)) > 1 and missing:
            fresh = dict(zip(keys, self._process_within_limit(list(pictures)), strict=True))
        else:
            fresh = {key: image for key, picture in missing.items() for image in self._process_within_limit([picture])}
        images = [self._processed.get(key) or fresh[key] for key in keys]
        for key, image in zip(keys, images, strict=True):
            self._processed[key] = image
            self._processed.move_to_end(key)
        while len(self._processed) > 1 and sum(one.size_bytes for one in self._processed.values()) > _CACHE_BYTES:
            self._processed.popitem(last=False)
        return images

    def expand(self, text: str, images: Sequence[ProcessedImage]) -> str:
        """Replace the placeholders of a rendered text by the texts of the images.

        Raises:
            ValueError: the text has more or fewer placeholders than there are images.
        """
        try:
            [expanded], [offsets] = self._processor.get_text_with_replacements([text], [image.text for image in images])
        except (StopIteration, RuntimeError) as error:
            raise ValueError(f"it writes {self.placeholder} more often than there are images") from error
        if len(offsets) != len(images):
            raise ValueError(f"it has places for {len(offsets)} images, not for {len(images)}")
        return str(expanded)

    def encode_raw(self, text: str, images: Sequence[ProcessedImage]) -> list[int]:
        """Return the ids of a text with placeholders, as the processor writes a prompt without a chat template."""
        settings = dict(images[0].settings)
        if any(image.settings != settings for image in images):  # no call of the processor makes these images
            return list(self._tokenizer(self.expand(text, images))["input_ids"])
        pictures = [image.picture.image() for image in images]
        encoded = self._encode(text=[text], images=pictures, return_tensors="pt", **_images_kwargs(settings))
        return [int(token) for token in encoded["input_ids"][0]]

    def _encode(self, **arguments: Any) -> Any:
        with compat.quiet_libraries():
            return self._processor(**arguments)

    def _count_that_matters(self, count: int) -> int:
        """Return 0 if images are processed one by one, else their number: LLaVA-OneVision divides only a single one."""
        return min(count, 2) if compat.counts_images(self._processor.image_processor) else 0

    def _process_within_limit(self, pictures: "list[Picture]") -> list[ProcessedImage]:
        """Process pictures together, smaller if they would have too many tokens."""
        images = self._process_group(pictures, {})
        further = iter(smaller_settings(self._processor.image_processor))
        settings: Mapping[str, Any] = {}
        smaller = pictures
        while not self._fit(images):
            if (fewer := next(further, None)) is not None:
                settings = fewer
            else:
                smaller = [self._smaller(image) for image in images]
            images = self._process_group(smaller, settings)
        given = [picture.sha256 for picture in pictures]
        return [replace(image, sha256=sha256) for image, sha256 in zip(images, given, strict=True)]

    def _fit(self, images: Sequence[ProcessedImage]) -> bool:
        return self._max_tokens is None or all(len(self._ids(image.text)) <= self._max_tokens for image in images)

    def _smaller(self, image: ProcessedImage) -> "Picture":
        """Return a smaller picture of an image that has too many tokens. Raise UserError if there is none."""
        tokens, limit = len(self._ids(image.text)), self._max_tokens or 1
        if tokens <= limit:
            return image.picture
        smaller = shrunk(image.picture, tokens=tokens, limit=limit)
        if smaller is None:
            raise UserError(
                f"this model reads an image as {tokens} tokens or more, and load.max_image_tokens is {limit}",
                hint=f"--max-image-tokens {tokens}",
            )
        return smaller

    def _process_group(self, pictures: "list[Picture]", settings: Mapping[str, Any]) -> list[ProcessedImage]:
        """Process pictures together and return each with its part of the tensors."""
        try:
            encoded = self._encode(
                text=[self.placeholder * len(pictures)],
                images=[[picture.image() for picture in pictures]],  # a flat list would be that of several prompts
                return_tensors="pt",
                return_text_replacement_offsets=True,
                return_mm_token_type_ids=True,
                **_images_kwargs(settings),
            )
        except ImportError as error:
            raise missing_package(error) from error
        except (ValueError, RuntimeError, ZeroDivisionError, OSError) as error:
            sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
            raise UserError(f"the model's processor refuses an image of {sizes} pixels: {first_line(error)}") from error
        texts = [part["replacement"] for part in encoded.pop("text_replacement_offsets")[0]]
        tensors = {name: tensor for name, tensor in encoded.items() if hasattr(tensor, "nbytes")}
        if len(pictures) == 1:
            return [self._image(pictures[0], texts[0], tensors, settings)]
        return [
            self._image(picture, text, self._part(tensors, number, text, len(pictures)), settings)
            for number, (picture, text) in enumerate(zip(pictures, texts, strict=True))
        ]

    def _part(self, tensors: "dict[str, Tensor]", number: int, text: str, count: int) -> "dict[str, Tensor]":
        """Return the tensors of one of several images, with the tokens of this image alone."""
        import torch

        ids = torch.tensor([self._ids(text)])
        part = {name: tensor[number : number + 1] for name, tensor in tensors.items() if len(tensor) == count}
        by_token = {name: torch.ones_like(ids) for name in ("attention_mask",) if name in tensors}
        counts = {name: tensor for name, tensor in tensors.items() if name == "batch_num_images"}
        return {**part, **by_token, **counts, "input_ids": ids}

    def _image(
        self, picture: "Picture", text: str, inputs: "dict[str, Tensor]", settings: Mapping[str, Any]
    ) -> ProcessedImage:
        together = inputs["batch_num_images"].tolist() if "batch_num_images" in inputs else []
        source = json.dumps([picture.sha256, self._settings, dict(settings), text, together])
        key = hashlib.sha256(source.encode()).hexdigest()
        tokens = self._ids(text).count(self.token_id)
        return ProcessedImage(key, picture.sha256, picture, text, tokens, self.token_id, inputs, settings)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _images_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of a processor that changes settings of its image processor."""
    return {"images_kwargs": dict(settings)} if settings else {}


def load_image_processor(
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    config: Mapping[str, Any],
    *,
    source: str,
    max_tokens: int | None = None,
) -> ImageProcessor:
    """Load the processor of a model that takes images.

    Args:
        config: The model's config.json.
        source: The model's name in messages.
        max_tokens: Maximum tokens of one image, or None for the processor's own limits.

    Raises:
        UserError: the model takes no images.
        MachineError: a package is missing.
        ModelError: the processor's files are missing or damaged.
    """
    try:
        processor = compat.image_processor(folder, tokenizer)
    except ImportError as error:
        raise missing_package(error) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if "Missing optional dependencies" in str(error):
            raise missing_package(error) from error
        raise ModelError(
            f"the image processor of {source} cannot be loaded: {first_line(error)}",
            hint="are preprocessor_config.json and processor_config.json complete?",
        ) from error
    if processor is None or getattr(processor, "image_token", None) is None:
        raise UserError(f"{source} takes no images", hint="llmctl plan MODEL --images 1 says which models do")
    token_id = config.get("image_token_id", config.get("image_token_index", getattr(processor, "image_token_id", None)))
    return ImageProcessor(processor, tokenizer, int(token_id), max_tokens=max_tokens)


def missing_package(error: Exception) -> MachineError:
    """Return the error for a package that images need."""
    if "torchvision" in str(error).lower():
        return MachineError(
            "the images of this model need the package torchvision",
            hint="pip install torchvision, of the version that belongs to your torch",
        )
    return MachineError(f"images need a package: {first_line(error)}", hint="pip install 'llmctl-hf[images]'")


_PROCESSORS: "WeakKeyDictionary[Any, ImageProcessor]" = WeakKeyDictionary()


@dataclass(frozen=True)
class LazyImageProcessor:
    """The image processor of a model, loaded with the first call.

    Attributes:
        model: The model.
    """

    model: "PromptModel" = field(repr=False)

    @property
    def takes_images(self) -> bool:
        """True if the model is composite, so that plain transformers would use its processor."""
        return is_composite(self.model.info.config)

    def __call__(self) -> ImageProcessor:
        """Return the processor. Raise UserError if images are turned off; else as `load_image_processor`."""
        model = self.model
        if model.config.load.images == "never":
            raise UserError(
                "images are turned off (load.images: never)", hint="omit load.images, or set it to auto or always"
            )
        if model.tokenizer not in _PROCESSORS:
            with compat.quiet_libraries():
                _PROCESSORS[model.tokenizer] = load_image_processor(
                    model.resolved.folder,
                    model.tokenizer,
                    model.info.config,
                    source=model.plan.source,
                    max_tokens=model.config.load.max_image_tokens,
                )
        return _PROCESSORS[model.tokenizer]
