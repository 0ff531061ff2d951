"""The HTTP library that the installed huggingface_hub calls: httpx2 from its 2.0 on, httpx before.

Both have the same names, but classes of their own, so an error of one is not an error of the other.
"""

from importlib import import_module
from types import ModuleType

from llmctl.versions import release


def http_library() -> ModuleType:
    """Return httpx2 or httpx. Annotations name httpx2, which stands for both."""
    import huggingface_hub

    return import_module("httpx2" if release(huggingface_hub.__version__) >= (2,) else "httpx")
