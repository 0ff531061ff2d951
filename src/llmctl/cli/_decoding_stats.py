"""What faster decoding brought, in words and as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion


def gains_text(done: "Completion") -> list[str]:
    """A line for each thing that was asked for."""
    gains, lines = done.gains, []
    if gains is None:
        return []
    if gains.forward_passes:
        drafted, accepted = gains.drafted_tokens or 0, gains.accepted_tokens or 0
        taken = f"{accepted} of {drafted} proposed tokens accepted" if drafted else "nothing was proposed"
        share = f" ({100 * accepted / drafted:.0f} %)" if drafted else ""
        rate = f"{len(done.token_ids) / gains.forward_passes:.2f} tokens per pass of the model"
        lines.append(f"{taken}{share}, {rate}")
    if gains.cache_bytes is not None:
        other = (
            f"; a dynamic one would be {format_bytes(gains.dynamic_cache_bytes)}" if gains.dynamic_cache_bytes else ""
        )
        lines.append(f"cache {format_bytes(gains.cache_bytes)}{other}")
    if gains.compile_seconds is not None:
        what = f"compiled in {gains.compile_seconds:.1f} s" if gains.compile_seconds else "nothing was left to compile"
        lines.append(what)
    return lines


def gains_document(done: "Completion") -> dict[str, Any]:
    """What `--json` says of it: nothing where nothing was asked for."""
    if done.gains is None:
        return {}
    body = {name: value for name, value in asdict(done.gains).items() if value is not None}
    if done.gains.forward_passes:
        body["tokens_per_forward"] = round(len(done.token_ids) / done.gains.forward_passes, 3)
    if done.gains.drafted_tokens:
        body["acceptance_rate"] = round((done.gains.accepted_tokens or 0) / done.gains.drafted_tokens, 4)
    return {"gains": body}
