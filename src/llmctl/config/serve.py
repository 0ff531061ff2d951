"""The section `serve`: address, access and capacity of the server."""

from pathlib import Path

from pydantic import Field

from llmctl.config.fields import Section, Texts


class ServeSection(Section):
    """Address, access and capacity of the server."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address. One that other machines can reach needs an API key."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    api_key_file: Path | None = Field(
        None, description="File of API keys, one per line. Default: the keys in LLMCTL_API_KEY, if it is set."
    )
    no_api_key: bool = Field(False, description="Let everybody who reaches the address use the model.")
    allowed_hosts: Texts = Field(
        [], description="Further names of this server in Host headers; *.NAME includes subdomains."
    )
    allowed_origins: Texts = Field(
        [], description="Sites whose pages may call the server from a browser: https://app.example.org, or * for all."
    )
    model_name: str | None = Field(
        None, min_length=1, description="Name of the model for clients; its id or folder name works as well."
    )
    max_queue: int = Field(128, ge=1, le=100_000, description="Maximum waiting requests; further ones get status 429.")
    max_sequences: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Maximum concurrent sequences. Default: the number that still improves throughput.",
    )
    request_seconds: float = Field(
        600, gt=0, le=86_400, description="Maximum seconds from a request to the end of its answer, queue included."
    )
    drain_seconds: float = Field(
        30, ge=0, le=3600, description="On SIGTERM: maximum seconds for running answers to finish."
    )
    max_body_bytes: int = Field(
        32 * 1024 * 1024,
        ge=1024,
        le=1 << 30,
        description="Maximum bytes of a request's body. Images are a third larger there than their files.",
    )
    fetch_images: bool = Field(
        False,
        description="Fetch images from the http and https URLs in requests, from public servers only. "
        "By default, images must be data URLs.",
    )
