"""The report of a finished answer: why it ended, its speed, and its decoding statistics, as text and as JSON."""

from typing import TYPE_CHECKING, Any

from llmctl.cli._render import Output
from llmctl.units import format_bytes

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion
    from llmctl.loading.model import LoadedModel


def speed_text(completion: "Completion") -> str:
    """Return the time to the first token and the rate: `first after 0.41 s, 23.5 tokens/s`."""
    rate = f", {completion.tokens_per_second:.1f} tokens/s" if completion.tokens_per_second else ""
    return f"first after {completion.first_token_seconds:.2f} s{rate}"


def finish_text(completion: "Completion") -> str:
    """Return why an answer ended."""
    at_length = "the context is full" if completion.length_limit == "context" else "max_new_tokens reached"
    texts = {"length": at_length, "stop_string": f"stop string {completion.stop_string!r}"}
    return texts.get(completion.finish_reason, "end of answer")


def acceptance_text(drafted: int, accepted: int) -> str:
    """Return the acceptance of proposed tokens."""
    if not drafted:
        return "nothing was proposed"
    return f"{accepted} of {drafted} proposed tokens accepted ({100 * accepted / drafted:.0f} %)"


def statistics_lines(completion: "Completion") -> list[str]:
    """Return one line for each decoding statistic that was measured: draft acceptance, cache size, compilation."""
    statistics, lines = completion.decoding_stats, []
    if statistics is None:
        return []
    if statistics.forward_passes:
        rate = f"{len(completion.token_ids) / statistics.forward_passes:.2f} tokens per pass of the model"
        lines.append(f"{acceptance_text(statistics.drafted_tokens or 0, statistics.accepted_tokens or 0)}, {rate}")
    if statistics.cache_bytes is not None:
        dynamic = statistics.dynamic_cache_bytes
        other = f"; a dynamic one would be {format_bytes(dynamic)}" if dynamic else ""
        lines.append(f"cache {format_bytes(statistics.cache_bytes)}{other}")
    if statistics.compile_seconds is not None:
        seconds = statistics.compile_seconds
        lines.append(f"compiled in {seconds:.1f} s" if seconds else "nothing left to compile")
    return lines


def statistics_document(completion: "Completion") -> dict[str, Any]:
    """Return the decoding statistics for `--json`, or an empty mapping if none were measured."""
    statistics = completion.decoding_stats
    return {} if statistics is None else {"gains": statistics.document(len(completion.token_ids))}


def logprobs_document(loaded: "LoadedModel", completion: "Completion") -> dict[str, Any]:
    """Return the log-probabilities for `--json`, if they were measured."""
    from llmctl.generation.logprobs import logprob_document

    if completion.logprobs is None:
        return {}
    return {"logprobs": [logprob_document(scored, loaded.tokenizer) for scored in completion.logprobs]}


def note_logprobs(output: Output, loaded: "LoadedModel", completion: "Completion") -> None:
    """Show each token of an answer with its log-probability, one per line, if they were measured."""
    from llmctl.generation.logprobs import logprob_line

    for scored in completion.logprobs or ():
        output.note(logprob_line(scored, loaded.tokenizer))
