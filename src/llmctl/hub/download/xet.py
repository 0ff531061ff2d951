"""Xet, the Hub's second storage for large files: used where the server offers it and hf_xet is installed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.hub.listing import RemoteFile

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.utils import XetFileData


@dataclass(frozen=True)
class Offer:
    """The server's offer to deliver one file through Xet."""

    file: "XetFileData"


def is_usable() -> bool:
    """Return True if hf_xet is installed and not disabled (HF_HUB_DISABLE_XET)."""
    from huggingface_hub.utils._runtime import is_xet_available

    return bool(is_xet_available())


def offer(response: "httpx2.Response") -> Offer | None:
    """Return the offer in the headers of a response, or None."""
    from huggingface_hub.utils import parse_xet_file_data_from_response

    file_data = parse_xet_file_data_from_response(response)
    return Offer(file_data) if file_data is not None else None


def fetch(
    offered: Offer, path: Path, file: RemoteFile, *, headers: dict[str, str], arrived: Callable[[int], None]
) -> None:
    """Fetch a complete file to `path`, reporting bytes to `arrived`. Exceptions of hf_xet are not translated."""
    from huggingface_hub.file_download import xet_get

    xet_get(
        incomplete_path=path,
        xet_file_data=offered.file,
        headers=headers,
        expected_size=file.size_bytes,
        displayed_filename=file.path,
        tqdm_class=_listener(arrived),
    )


def abort() -> None:
    """Make every running fetch return at once."""
    from huggingface_hub.utils._xet import abort_xet_session

    abort_xet_session()  # type: ignore[no-untyped-call]


def _listener(arrived: Callable[[int], None]) -> Any:
    """Return a class with the interface of a progress bar for hf_xet; it draws nothing and reports the bytes."""

    class Listener:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def __enter__(self) -> "Listener":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def close(self) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            arrived(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_postfix_str(self, *args: object, **kwargs: object) -> None:
            pass

        def set_transfer_postfix_str(self, *args: object, **kwargs: object) -> None:
            pass

    return Listener
