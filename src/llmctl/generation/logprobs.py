"""Log-probabilities of tokens in the model's own distribution.

That is the softmax of its raw logits in float32, before any penalty, constraint, temperature, top_k or top_p.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "�"


@dataclass(frozen=True)
class Alternative:
    """A token that could have been chosen, and its natural log-probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, and its natural log-probability.

    Attributes:
        top: The top tokens at its position, most likely first.
    """

    id: int
    logprob: float
    top: tuple[Alternative, ...] = ()


def token_logprob(logits: "torch.Tensor", token: int, n: int) -> TokenLogprob:
    """Return the log-probability of one token.

    Args:
        logits: Raw logits of shape [V], in any dtype and on any device.
        n: Number of top tokens to add.
    """
    return token_logprobs(logits[None], [token], n)[0]


def token_logprobs(logits: "torch.Tensor", tokens: list[int], n: int) -> list[TokenLogprob]:
    """Return `token_logprob` for T positions, given logits of shape [T, V]. Allocates [T, V] in float32."""
    import torch

    logprobs = torch.log_softmax(logits.detach().float(), dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0].tolist()
    if not n:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = logprobs.topk(min(n, logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprob(token, value, tuple(map(Alternative, row_ids, row)))
        for token, value, row_ids, row in zip(tokens, chosen, ids.tolist(), values.tolist(), strict=True)
    ]


class RawLogits:
    """Captures the raw logits of this thread's newest forward pass while `generate` runs. Its state: those logits.

    It uses a forward hook because a logits processor runs after those of transformers, such as the repetition penalty.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._newest: torch.Tensor | None = None

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._handle = self._model.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _model: Any, _arguments: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:  # a server may score a text at the same time
            self._newest = output.logits[0, -1].detach().clone()  # only the last row of a prefill is needed

    def logprob(self, token: int, n: int) -> TokenLogprob:
        """Return the log-probability of the newest token, with the `n` top tokens. Call it once for each pass."""
        newest, self._newest = self._newest, None
        assert newest is not None, "each token has a forward pass of its own"  # noqa: S101
        return token_logprob(newest, token, n)


def logprob_document(scored: TokenLogprob, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return a token as JSON values: text, id, log-probability (null for minus infinity), and the top tokens."""
    return {
        **token_text(tokenizer, scored.id),
        "id": scored.id,
        "logprob": _number(scored.logprob),
        "top": [{**token_text(tokenizer, a.id), "id": a.id, "logprob": _number(a.logprob)} for a in scored.top],
    }


def logprob_line(scored: TokenLogprob, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a token as a line of text: `-0.0123  98.8%  " Paris"`, then the top tokens with their probabilities."""
    from math import exp

    def percentage(logprob: float) -> str:
        return f"{100 * exp(logprob):.3g}%"

    def name(token: int) -> str:
        return repr(token_text(tokenizer, token)["token"])

    top = ", ".join(f"{name(a.id)} {percentage(a.logprob)}" for a in scored.top)
    line = f"{scored.logprob:9.4f} {percentage(scored.logprob):>7}  {name(scored.id)}"
    return f"{line}   of {top}" if top else line


def token_text(tokenizer: "PreTrainedTokenizerBase", token: int) -> dict[str, Any]:
    """Return the text of one token as `token`, and the bytes of an incomplete character as `bytes`."""
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if _REPLACEMENT not in text:
        # SentencePiece decoders drop a leading space
        return {"token": f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text}
    raw = _bytes_of(piece)
    return {"token": text} if raw is None else {"token": text, "bytes": list(raw)}


def _bytes_of(piece: str) -> bytes | None:
    """Return the bytes of a vocabulary entry: `<0xE2>`, or letters of byte-level BPE. None for other entries."""
    if match := _BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    letters = _byte_letters()
    return bytes(letters[c] for c in piece) if all(c in letters for c in piece) else None


@cache
def _byte_letters() -> Mapping[str, int]:
    """Return the byte of each letter in byte-level BPE: printable Latin-1 is itself, other bytes start at U+0100.

    Source: bytes_to_unicode of GPT-2's encoder.py.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _number(logprob: float) -> float | None:
    return logprob if isfinite(logprob) else None
