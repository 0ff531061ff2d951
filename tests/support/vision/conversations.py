"""Conversations with pictures, in the forms that processors and base models take."""

from collections.abc import Sequence
from typing import Any

from support.vision.pictures import picture

Part = str | int  # a text, or the number of a picture
CONVERSATIONS: dict[str, Sequence[Sequence[Part]]] = {
    "no picture": [["say it"]],
    "one picture": [[0, "say it"]],
    "another picture of this size": [[3, "say it"]],
    "a picture after the text": [["say it", 2]],
    "three pictures of different sizes": [[0, "and", 1, 2, "say it"]],
    "a picture in the second turn": [["hello"], ["hi"], [1, "say it"]],
    "a picture in both turns": [[0, "hello"], ["hi"], [2, "say it"]],
}


def messages(name: str) -> list[dict[str, Any]]:
    """Return a conversation as messages whose contents are lists of parts."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": [_part(part) for part in turn]}
        for number, turn in enumerate(CONVERSATIONS[name])
    ]


def raw_prompt(name: str, placeholder: str) -> tuple[str, list[Any]]:
    """Return a conversation as one text, with a placeholder for each picture, and its pictures."""
    parts = [part for turn in CONVERSATIONS[name] for part in turn]
    text = "".join(part if isinstance(part, str) else placeholder for part in parts)
    return text, [picture(part) for part in parts if isinstance(part, int)]


def _part(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": picture(part)}
