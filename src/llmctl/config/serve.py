"""The section `serve`: where the server listens, who may use it, and how much it takes on."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from llmctl.config.section import Section


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ServeSection(Section):
    """Where the server listens, who may use it, and how much it takes on."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="The address. One that other machines reach needs an API key."
    )
    port: int = Field(8000, ge=0, le=65535, description="The port; 0 takes a free one.")
    api_key_file: Path | None = Field(
        None, description="A file of API keys, one a line. Without it LLMCTL_API_KEY has them, if there are any."
    )
    no_api_key: bool = Field(False, description="Let everybody who reaches the address use the model.")
    allowed_hosts: Annotated[list[str], BeforeValidator(_list)] = Field(
        [], description="Further names of this server, as they stand in a Host header; *.NAME covers what is below."
    )
    allowed_origins: Annotated[list[str], BeforeValidator(_list)] = Field(
        [], description="Sites whose pages may use the server from a browser: https://app.example.org, or * for all."
    )
    model_name: str | None = Field(
        None, min_length=1, description="What clients call the model; its id, or its folder's name, works as well."
    )
    max_queue: int = Field(
        128, ge=1, le=100_000, description="So many requests may wait; further ones are answered 429."
    )
    max_sequences: int | None = Field(
        None, ge=1, le=4096, description="So many answers at a time. Default: as many as this machine gains from."
    )
    request_seconds: float = Field(
        600, gt=0, le=86_400, description="The time from a request to the end of its answer, waiting included."
    )
    drain_seconds: float = Field(
        30, ge=0, le=3600, description="On SIGTERM: the time for answers that are under way to end."
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, le=1 << 30, description="The longest body of a request.")
