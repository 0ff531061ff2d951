"""The text of files that people and other programs write, in the encodings that their editors use.

UTF-8 is read with and without a byte order mark; UTF-16 and UTF-32 are recognised by theirs. Windows PowerShell 5
writes UTF-16 unless told otherwise, and older versions of Notepad write the mark.
"""

import codecs
import os
from contextlib import suppress
from pathlib import Path

# UTF-32's little-endian mark begins with that of UTF-16, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class NotTextError(ValueError):
    """Bytes that are not text. The message is a reason to put after the name of the file."""


def encoding_of(data: bytes) -> str:
    """Return Python's name of the encoding that the first bytes announce: UTF-8 unless there is another mark."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")


def decode(data: bytes) -> str:
    """Return the text in `data`, without its byte order mark and with its line ends as they are.

    Raises:
        NotTextError: it is not UTF-8, or is binary or UTF-16 without a mark, which both have null bytes.
    """
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise NotTextError(f"not valid {encoding.upper()} text, as its first bytes announce") from error
        raise NotTextError(f"not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})") from error
    if "\0" in text:
        raise NotTextError("null bytes: it is binary, or UTF-16 without a byte order mark")
    return text


def as_utf8(text: str) -> str:
    """Return an argument or a variable as text. Bytes that the locale does not know arrive as lone surrogates.

    Raises:
        NotTextError: these bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeError):
            return os.fsencode(text).decode()
        raise NotTextError("not UTF-8 text") from None
    return text


def read_text(path: Path) -> str:
    """Return the text of a file with its line ends as they are.

    Raises:
        OSError: it cannot be read.
        NotTextError: it is not text.
    """
    return decode(path.read_bytes())


def reason(error: OSError | NotTextError) -> str:
    """Return why a file could not be read, as the end of a message."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
