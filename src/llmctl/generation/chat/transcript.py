"""Conversations as files: JSON Lines to resume, Markdown to read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import UserError
from llmctl.generation.chat.attachments import Attachment, attachments_from
from llmctl.paths import write_atomically
from llmctl.text_files import NotTextError, read_text, reason

SCHEMA = "llmctl.chat/1"
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        reasoning: The model's reasoning before its answer; it is shown, but not part of later prompts.
        stopped: True if the answer was stopped before its end.
        images: Images of a user's message, which stand before its text.
    """

    role: Literal["user", "assistant"]
    content: str
    reasoning: str = ""
    stopped: bool = False
    images: tuple[Attachment, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the message for a prompt, with `role` and `content`."""
        if not self.images:
            return {"role": self.role, "content": self.content}
        parts = [*(image.part for image in self.images), {"type": "text", "text": self.content}]
        return {"role": self.role, "content": parts}


@dataclass(frozen=True)
class Transcript:
    """A conversation in its saved form.

    Attributes:
        model: The Hub id or folder of the model that answered last.
        commit: The commit of that model on the Hub, or None.
        system: The system prompt, or None.
        messages: The messages, oldest first.
    """

    model: str
    commit: str | None
    system: str | None
    messages: tuple[Message, ...]


def save(transcript: Transcript, file: Path) -> None:
    """Write a conversation: a header line, then one message per line. Of images, the paths and hashes are written.

    Raises:
        UserError: the file cannot be written, or an image comes from no file.
    """
    header = {
        "schema": SCHEMA,
        "model": transcript.model,
        "commit": transcript.commit,
        "system": transcript.system,
    }
    lines = [header, *(_record(message) for message in transcript.messages)]
    _write(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read(file: Path) -> Transcript:
    """Read a saved conversation, and the images of its messages.

    Raises:
        UserError: the file cannot be read, a line does not have the form that `save` writes, or an image is missing or
            was changed.
        MachineError: it has images, and Pillow is missing.
    """
    try:
        lines = [line for line in read_text(file).split("\n") if line.strip()]
    except (OSError, NotTextError) as error:
        hint = "/save FILE writes a conversation that can be resumed"
        raise UserError(f"{file}: {reason(error)}", hint=hint) from error
    header, *messages = [_object(file, number, line) for number, line in enumerate(lines, 1)] or [{}]
    if header.get("schema") != SCHEMA:
        raise UserError(f"{file}: not a saved conversation ({SCHEMA})", hint="/save FILE writes one")
    return Transcript(
        model=_text(file, 1, header, "model"),
        commit=header["commit"] if isinstance(header.get("commit"), str) else None,
        system=header["system"] if isinstance(header.get("system"), str) else None,
        messages=tuple(_message(file, number, value) for number, value in enumerate(messages, 2)),
    )


def export_markdown(transcript: Transcript, file: Path) -> None:
    """Write a conversation as Markdown, without reasoning.

    Raises:
        UserError: the file cannot be written.
    """
    _write(file, "\n\n".join(_markdown(transcript.messages, transcript)) + "\n")


def _markdown(messages: Sequence[Message], transcript: Transcript) -> Iterator[str]:
    yield f"# Conversation with {transcript.model}"
    if transcript.system:
        yield f"## System\n\n{transcript.system}"
    for message in messages:
        mark = " (stopped)" if message.stopped else ""
        images = "".join(f"(image: {image.name})\n\n" for image in message.images)
        yield f"## {message.role.capitalize()}{mark}\n\n{images}{message.content.strip()}"


def _write(file: Path, text: str) -> None:
    try:
        write_atomically(file, text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _record(message: Message) -> dict[str, Any]:
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        record["reasoning"] = message.reasoning
    if message.images:
        record["media"] = [image.document() for image in message.images]
    return record | ({"stopped": True} if message.stopped else {})


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}:{number}: this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}:{number}: this is not a JSON object")
    return value


def _text(file: Path, number: int, value: dict[str, Any], key: str) -> str:
    if not isinstance(value.get(key), str):
        raise UserError(f"{file}:{number}: {key} is not a string")
    return str(value[key])


def _message(file: Path, number: int, value: dict[str, Any]) -> Message:
    role = value.get("role")
    if role not in _ROLES:
        raise UserError(f"{file}:{number}: role is neither user nor assistant")
    reasoning = value.get("reasoning")
    try:
        images = attachments_from(value.get("media", []))
    except ValueError as error:
        raise UserError(f"{file}:{number}: {error}") from error
    except UserError as error:
        raise UserError(f"{file}:{number}: {error.message}", hint=error.hint) from error
    return Message(
        role="user" if role == "user" else "assistant",
        content=_text(file, number, value, "content"),
        reasoning=reasoning if isinstance(reasoning, str) else "",
        stopped=value.get("stopped") is True,
        images=images,
    )
