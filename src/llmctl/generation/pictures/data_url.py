"""Pictures in data URLs (RFC 2397): `data:image/png;base64,iVBORw0…`."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from llmctl.errors import UserError
from llmctl.generation.pictures.picture import DEFAULT_LIMITS, PictureLimits
from llmctl.units import format_bytes

_EXAMPLE = "write data:image/png;base64, and then the file in base64"
_HEADER_CHARACTERS = 500
_MEDIA_TYPE = re.compile(r"[!-~]+/[!-~]+")
_PERCENT_FAULT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
_WHITESPACE = b" \t\r\n\f"  # that browsers skip, too: https://infra.spec.whatwg.org/#forgiving-base64


def is_data_url(text: str) -> bool:
    """Return True if a text is meant as a data URL."""
    return text[:5].lower() == "data:"


def bytes_of_data_url(text: str, limits: PictureLimits = DEFAULT_LIMITS) -> bytes:
    """Return the file in a data URL. Its media type must be an image; its format is found when it is decoded.

    Raises:
        UserError: it is not a data URL of an image, is encoded wrongly, or is too large.
    """
    if not is_data_url(text):
        raise UserError("an image's data URL must begin with data:", hint=_EXAMPLE)
    header, comma, body = text[5:].partition(",")
    if not comma or len(header) > _HEADER_CHARACTERS:
        raise UserError("an image's data URL has no comma between its media type and its data", hint=_EXAMPLE)
    media_type, *parameters = (part.strip() for part in header.split(";"))
    _check_media_type(media_type)
    if len(body) > 4 * limits.file_bytes:  # neither encoding can be longer, unless it is mostly white space
        raise _too_large(limits)
    try:
        encoded = body.encode("ascii")
    except UnicodeEncodeError as error:
        raise UserError(
            f"an image's data URL is not ASCII: character {error.start + 1} of its data", hint=_EXAMPLE
        ) from None
    data = _percent_decoded(encoded)
    if parameters and parameters[-1].lower() == "base64":
        data = _base64_decoded(data)
    if not data:
        raise UserError("an image's data URL has no data", hint=_EXAMPLE)
    if len(data) > limits.file_bytes:
        raise _too_large(limits)
    return data


def _check_media_type(media_type: str) -> None:
    if not media_type:
        raise UserError("an image's data URL has no media type", hint=_EXAMPLE)
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise UserError("the media type of an image's data URL is malformed", hint=_EXAMPLE)
    if not media_type.lower().startswith("image/"):
        raise UserError(f"a data URL of type {media_type[:80]} is not an image", hint=_EXAMPLE)


def _percent_decoded(encoded: bytes) -> bytes:
    if b"%" not in encoded:
        return encoded
    if fault := _PERCENT_FAULT.search(encoded):
        where = f"% at character {fault.start() + 1} of its data is not followed by two hexadecimal digits"
        raise UserError(f"an image's data URL is encoded wrongly: {where}", hint=_EXAMPLE)
    return unquote_to_bytes(encoded)


def _base64_decoded(encoded: bytes) -> bytes:
    """Return what base64 stands for. White space may stand between its characters, and its padding may be missing."""
    characters = encoded.translate(None, _WHITESPACE)
    if fault := _NOT_BASE64.search(characters):
        character = fault[0].decode("latin-1")
        advice = "; this is the URL-safe alphabet, use the standard one" if character in "-_" else ""
        raise UserError(
            f"the base64 of an image's data URL has the character {character!a} at {fault.start() + 1}{advice}",
            hint=_EXAMPLE,
        )
    try:
        return base64.b64decode(characters + b"=" * (-len(characters) % 4), validate=True)
    except binascii.Error as error:
        raise UserError(
            f"the base64 of an image's data URL is malformed or incomplete ({len(characters)} characters)",
            hint=_EXAMPLE,
        ) from error


def _too_large(limits: PictureLimits) -> UserError:
    return UserError(
        f"an image's data URL has more than {format_bytes(limits.file_bytes)}", hint="make the picture smaller"
    )
