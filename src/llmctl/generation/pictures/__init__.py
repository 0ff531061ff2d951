"""Reading of untrusted pictures: files, bytes, URLs and PIL images become RGB pixels within limits."""

from llmctl.generation.pictures.data_url import bytes_of_data_url, is_data_url
from llmctl.generation.pictures.fetch import fetch_picture
from llmctl.generation.pictures.picture import Picture, PictureLimits
from llmctl.generation.pictures.read import read_pictures

__all__ = ["Picture", "PictureLimits", "bytes_of_data_url", "fetch_picture", "is_data_url", "read_pictures"]
