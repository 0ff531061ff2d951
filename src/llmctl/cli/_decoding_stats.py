"""The effect of faster decoding, in words and as JSON."""

from typing import TYPE_CHECKING, Any

from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion


def decoding_lines(completion: "Completion") -> list[str]:
    """Return one line for each kind of faster decoding that was asked for."""
    stats, lines = completion.decoding_stats, []
    if stats is None:
        return []
    if stats.forward_passes:
        rate = f"{len(completion.token_ids) / stats.forward_passes:.2f} tokens per pass of the model"
        lines.append(f"{acceptance(stats.drafted_tokens or 0, stats.accepted_tokens or 0)}, {rate}")
    if stats.cache_bytes is not None:
        other = (
            f"; a dynamic one would be {format_bytes(stats.dynamic_cache_bytes)}" if stats.dynamic_cache_bytes else ""
        )
        lines.append(f"cache {format_bytes(stats.cache_bytes)}{other}")
    if stats.compile_seconds is not None:
        compiled = f"compiled in {stats.compile_seconds:.1f} s" if stats.compile_seconds else "nothing left to compile"
        lines.append(compiled)
    return lines


def acceptance(drafted: int, accepted: int) -> str:
    """Return the acceptance of proposed tokens in words."""
    if not drafted:
        return "nothing was proposed"
    return f"{accepted} of {drafted} proposed tokens accepted ({100 * accepted / drafted:.0f} %)"


def decoding_document(completion: "Completion") -> dict[str, Any]:
    """Return the entry of `--json`; empty where nothing was asked for."""
    stats = completion.decoding_stats
    return {} if stats is None else {"gains": stats.document(len(completion.token_ids))}
