"""Reading of the images in a request: their checks, fetching and decoding, apart from the event loop and the engine."""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.pictures import (
    Picture,
    PictureLimits,
    bytes_of_data_url,
    fetch_picture,
    is_data_url,
    read_pictures,
)
from llmctl.server.http_errors import RequestError
from llmctl.server.schemas import ImageBody

_LOW_DETAIL_SIDE = 512  # OpenAI's: https://developers.openai.com/api/docs/guides/images-vision
_DECODERS = 2
_log = logging.getLogger("llmctl.serve")
_FETCHERS = 16
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageLimits:
    """Limits of the images in requests.

    Attributes:
        images: Maximum images of a request.
        pixels: Maximum pixels of all images of a request.
        preparing: Maximum requests whose images are being read; further ones get 429.
        held_bytes: Bytes of the pixels of all requests, waiting and running, from which further images get 429.
        each: Limits of each image.
    """

    images: int = 16
    pixels: int = 64_000_000
    preparing: int = 32
    held_bytes: int = 1 << 30
    each: PictureLimits = field(default_factory=PictureLimits)


@dataclass(frozen=True)
class PlacedImage:
    """An image of a request.

    Attributes:
        place: Its place in the body: `messages[0].content[1]`.
        image: The part.
    """

    place: str
    image: ImageBody


def placed_images(name: str, messages: "str | Sequence[Any]") -> list[PlacedImage]:
    """Return the images in the messages of the field `name`, in order.

    Raises:
        RequestError: an image is in a message of another role than the user's.
    """
    images = []
    for number, message in enumerate(() if isinstance(messages, str) else messages):
        for position, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, ImageBody):
                place = f"{name}[{number}].content[{position}]"
                if message.role != "user":
                    raise RequestError(
                        f"images belong to messages of the user, not to one of the role {message.role}", param=place
                    )
                images.append(PlacedImage(place, part))
    return images


class ImageReader:
    """Reads the images of requests. Its state: its threads, and the bytes of the pixels that are held.

    Args:
        processor: The model's image processor.
        fetches: True if URLs of public servers are fetched.
        limits: The limits.
        fetch: Function from a URL and the limits of a picture to its file.
    """

    def __init__(
        self,
        processor: LazyImageProcessor,
        *,
        fetches: bool,
        limits: ImageLimits | None = None,
        fetch: Callable[[str, PictureLimits], bytes] = fetch_picture,
    ) -> None:
        self._processor, self._fetches, self._fetch = processor, fetches, fetch
        self.limits = limits or ImageLimits()
        self._decoding = ThreadPoolExecutor(_DECODERS, "llmctl-images")
        self._fetching = ThreadPoolExecutor(_FETCHERS, "llmctl-fetch")
        self._preparing = 0
        self._held_bytes = 0
        self._lock = threading.RLock()  # the garbage collector may release a picture while the lock is held
        self._reason: str | None = None
        self._is_known = False

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        for pool in (self._decoding, self._fetching):
            pool.shutdown(wait=False, cancel_futures=True)

    async def takes_images(self) -> bool:
        """Return True if the model takes images. The first call loads its processor."""
        return await self._run(self._decoding, self._why_not) is None

    async def prepare(self, images: Sequence[PlacedImage], work: Callable[[list[Picture]], _Result]) -> _Result:
        """Read images and return the result of `work` with the pictures, computed in another thread.

        Raises:
            RequestError: the model takes no images, one cannot be read, or there are too many; with its place.
        """
        if not images:
            return await asyncio.to_thread(work, [])
        with self._admitted():
            await self._check(images)
            pictures: list[Picture] = []
            for number, one in enumerate(images, 1):
                pictures.append(await self._read(number, one))
                if sum(picture.width * picture.height for picture in pictures) > self.limits.pixels:
                    raise RequestError(
                        f"the images of a request may have {self.limits.pixels:,} pixels together; send smaller ones",
                        param=one.place,
                        code="invalid_image",
                    )
            return await self._run(self._decoding, lambda: work(pictures))

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a request whose images are being read. Only the event loop enters."""
        if self._preparing >= self.limits.preparing:
            raise _too_many()
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    async def _check(self, images: Sequence[PlacedImage]) -> None:
        """Check what needs no decoding."""
        if (reason := await self._run(self._decoding, self._why_not)) is not None:
            raise RequestError(reason, param=images[0].place, code="unsupported_image")
        if len(images) > self.limits.images:
            raise RequestError(
                f"a request may have {self.limits.images} images, and this one has {len(images)}",
                param=images[self.limits.images].place,
            )
        for one in images:
            if not is_data_url(one.image.source) and not self._fetches:
                raise RequestError(
                    "this server fetches no images: send the image itself, as a data URL "
                    "(data:image/png;base64,...), or set serve.fetch_images",
                    param=one.place,
                    code="invalid_image_url",
                )

    def _why_not(self) -> str | None:
        """Return the reason why the model takes no images; None if it does."""
        with self._lock:
            if not self._is_known:
                self._reason, self._is_known = _why_no_images(self._processor), True
            return self._reason

    async def _read(self, number: int, one: PlacedImage) -> Picture:
        limits, source = self.limits.each, one.image.source
        try:
            if is_data_url(source):
                data = await self._run(self._decoding, lambda: bytes_of_data_url(source, limits))
            else:
                data = await self._run(self._fetching, lambda: self._fetch(source, limits))
            return await self._run(self._decoding, lambda: self._decode(number, data, one.image.chosen_detail))
        except MachineError:
            raise
        except LlmctlError as error:
            message = f"{error.message}; {error.hint}" if error.hint else error.message
            raise RequestError(message, param=one.place, code="invalid_image") from error

    def _decode(self, number: int, data: bytes, detail: str | None) -> Picture:
        with self._lock:
            if self._held_bytes >= self.limits.held_bytes:
                raise _too_many()
        [picture] = read_pictures([data], limits=self.limits.each)
        if isinstance(picture, UserError):
            raise UserError(picture.message.replace("image 1 ", f"image {number} ", 1), hint=picture.hint)
        if not isinstance(picture, Picture):
            raise picture
        if detail == "low":
            picture = _shrunk(picture)
        self._hold(picture)
        return picture

    def _hold(self, picture: Picture) -> None:
        """Count the bytes of a picture for as long as it is in memory."""
        size = len(picture.pixels)
        with self._lock:
            self._held_bytes += size
        weakref.finalize(picture, self._release, size)

    def _release(self, size: int) -> None:
        with self._lock:
            self._held_bytes -= size


def _why_no_images(processor: LazyImageProcessor) -> str | None:
    """Return the reason in words for clients, which do not learn the model's folder."""
    if processor.takes_images:
        if processor.model.config.load.images == "never":
            return "this server takes no images: load.images is never"
        try:
            processor()
            return None
        except UserError:
            pass  # a model with towers for sound only, for example
        except LlmctlError as error:
            _log.warning("%s", error.message)
            return "this server takes no images, because their processor cannot be loaded; its log has the reason"
    return "this model takes no images; send text only"


def _shrunk(picture: Picture) -> Picture:
    """Return a picture with at most 512 pixels on a side."""
    image = picture.image()
    image.thumbnail((_LOW_DETAIL_SIDE, _LOW_DETAIL_SIDE))
    return Picture.of(width=image.width, height=image.height, pixels=image.tobytes())


def _too_many() -> RequestError:
    return RequestError(
        "the images of other requests fill the server's memory for them; try again later",
        status=429,
        code="queue_full",
        headers={"Retry-After": "2"},
    )
