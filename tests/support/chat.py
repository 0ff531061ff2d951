"""`llmctl chat` in a pseudo-terminal."""

import os
import re
from pathlib import Path

import pexpect

from support.terminal import Terminal

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Chat:
    """A conversation in a pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child = Terminal("chat", *arguments, env=env, cwd=folder, columns=100)
        self.child.expect("Ctrl-D exits")
        self.prompt()

    def prompt(self) -> str:
        """Wait for the prompt and return the text shown until then."""
        self.child.expect(r"\x1b\[\?2004h")  # bracketed paste is switched on: the editor is ready
        return self.shown

    @property
    def shown(self) -> str:
        return _SEQUENCE.sub("", self.child.before).replace("\r", "")

    def say(self, text: str) -> str:
        """Type a line and return the text shown until the next prompt."""
        self.child.send(text + "\r")
        return self.prompt()

    def ask(self, text: str) -> tuple[int, int]:
        """Send a message and return the tokens of the prompt and the number of them that were computed."""
        self.child.send(text + "\r")
        self.child.expect(r"(\d+) tokens in, (\d+) of them new, (\d+) out")
        figures = int(self.child.match[1]), int(self.child.match[2])
        self.prompt()
        return figures

    def leave(self, command: str = "/exit") -> int:
        self.child.send(f"{command}\r")
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)
