"""The server's log on standard error: one line per request, warnings, and the traceback of a bug."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.cli._render import Output

_LOGGERS = ("llmctl.serve", "uvicorn.error")


class _ToOutput(logging.Handler):
    """Passes records to the command's output, which makes control characters visible."""

    def __init__(self, output: "Output") -> None:
        super().__init__()
        self._output = output
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            self._output.warn(text)
        else:
            self._output.note(text)


def log_to(output: "Output") -> None:
    """Send the server's log to standard error from now on; with `--quiet` only warnings."""
    handler = _ToOutput(output)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("llmctl.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
