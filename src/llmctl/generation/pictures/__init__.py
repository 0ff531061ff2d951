"""Reading of untrusted pictures: files, bytes and PIL images become RGB pixels within limits."""

from llmctl.generation.pictures.picture import Picture, PictureLimits
from llmctl.generation.pictures.read import read_pictures

__all__ = ["Picture", "PictureLimits", "read_pictures"]
