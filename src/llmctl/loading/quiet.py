"""Keep the libraries' own talk off the screen: what matters of it has been turned into decisions and errors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence transformers' warnings and progress bars while the block runs.

    A verbosity that the user raised (TRANSFORMERS_VERBOSITY=info, or `--debug`) is left alone.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if verbosity >= logging.WARNING:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
