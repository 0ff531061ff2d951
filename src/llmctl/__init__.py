"""Set up and run large language models locally with Hugging Face transformers."""

from llmctl._version import __version__

__all__ = ["__version__"]
