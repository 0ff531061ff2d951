"""The images of a batch's rows: found and hashed when a row is read, decoded shortly before it is answered."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.errors import UserError
from llmctl.generation.batch.rows import Row
from llmctl.generation.image_input import count_images, image_sources, with_image_sources, with_images
from llmctl.generation.media import Media
from llmctl.generation.pictures.decode import read_file
from llmctl.generation.pictures.formats import RefusedError
from llmctl.generation.pictures.picture import DEFAULT_LIMITS

_IMAGES_TOGETHER = 16  # in memory, decoded and processed


def with_media(rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """Yield rows with the hashes of their images' files; an image that cannot be read is the row's error.

    Args:
        folder: Paths of images are relative to it.
    """
    for row in rows:
        if row.error is not None or not count_images(row.prompt):
            yield row
            continue
        try:
            prompt = tuple(with_image_sources(row.prompt, folder))
            media = tuple(Media("image", _file_hash(source)) for source in image_sources(prompt))
        except UserError as error:
            yield replace(row, error=error)
        else:
            yield replace(row, prompt=prompt, media=media)


def _file_hash(source: Any) -> str:
    """Return the hash of the content of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = source if isinstance(source, bytes) else read_file(source, DEFAULT_LIMITS)
    except RefusedError as error:
        raise UserError(f"{source} {error.reason}", hint=error.hint) from error
    return hashlib.sha256(content).hexdigest()


def decoded(row: Row) -> Row:
    """Return a row whose images are decoded pictures, or with the error of the first that cannot be.

    Raises:
        MachineError: Pillow is missing.
    """
    if row.error is not None or not count_images(row.prompt):
        return row
    try:
        return replace(row, prompt=tuple(with_images(row.prompt)))
    except UserError as error:
        return replace(row, error=error)


def windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield rows in groups of at most `size`, and of so few images that their pixels fit in memory together."""
    window: list[Row] = []
    images = 0
    for row in rows:
        window.append(row)
        images += count_images(row.prompt)
        if len(window) >= size or images >= _IMAGES_TOGETHER:
            yield window
            window, images = [], 0
    if window:
        yield window
