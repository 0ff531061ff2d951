"""`llmctl replay`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli._command import Command, new_app
from llmctl.cli._options import DraftOption, ModelOption, OvercommitOption, TrustOption, prepare_model
from llmctl.cli._render import Output
from llmctl.cli.generate import hashing
from llmctl.errors import EXIT_NO

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.reproduce.manifest import Manifest
    from llmctl.reproduce.replay import Difference, Outcome

app = new_app()


@app.command(cls=Command)
def replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `llmctl generate --json` wrote, or JSON Lines of it.")],
    model: ModelOption = None,
    draft: DraftOption = None,
    trust_remote_code: TrustOption = None,
    overcommit: OvercommitOption = None,
) -> None:
    """Run recorded answers again, and say where they differ.

    The model's files must be those of the recording, by their hashes; nothing is downloaded. The exit code is 0 where
    every answer is identical, token by token, and 1 where one is not. A recording is data: of its settings only those
    that pass the schema count, and the model's own code runs only with --trust-remote-code.

    Examples:

      llmctl generate --prompt "Tell me a story" --temperature 0.8 --json > run.json

      llmctl replay run.json

      llmctl replay run.json --model ./the-same-model --json
    """
    from llmctl.reproduce import replay as core

    output: Output = ctx.obj
    recordings = core.read_recordings(file)
    groups: dict[str, list[core.Recording]] = {}
    for recording in recordings:
        groups.setdefault(core.loads_alike(recording.manifest), []).append(recording)
    outcomes: list[Outcome] = []
    found: list[Difference] = []
    for group in groups.values():
        loaded = _load(
            output, group[0].manifest, (model, draft), trust=bool(trust_remote_code), overcommit=bool(overcommit)
        )
        found += [d for d in core.environment_differences(group[0].manifest, loaded) if d not in found]
        for recording in group:
            with output.waiting(f"replaying {recording.name}"):
                outcomes.append(core.replay(loaded, recording))
            if not output.as_json:
                _tell(output, outcomes[-1])
        del loaded
    _conclude(output, outcomes, found)
    if not all(outcome.identical for outcome in outcomes):
        raise typer.Exit(EXIT_NO)


def _load(
    output: Output, manifest: "Manifest", places: tuple[str | None, str | None], *, trust: bool, overcommit: bool
) -> "LoadedModel":
    from llmctl.loading.loader import load_prepared
    from llmctl.machine.threads import use_threads_of_recording
    from llmctl.reproduce.replay import check_files, loading_settings

    model, draft = places
    settings = loading_settings(manifest, model=model, draft=draft, trust_remote_code=trust, overcommit=overcommit)
    prepared = prepare_model(output, settings, offline=True)
    with hashing(output, prepared.located):
        check_files(manifest, prepared)
    with output.waiting(f"loading {prepared.located.source}"):
        loaded = load_prepared(prepared)
    use_threads_of_recording(manifest.hardware.threads)
    return loaded


def _tell(output: Output, outcome: "Outcome") -> None:
    name, count = outcome.recording.name, len(outcome.recording.token_ids)
    if outcome.remark:
        output.warn(f"{name}: {outcome.remark}")
    if outcome.index is None:
        output.line(f"{name}: identical, {count} token{'s' * (count != 1)}")
        return
    output.line(f"{name}: different from token {outcome.index} on, of {count}")
    output.pairs([("after", repr(outcome.before)), ("then", repr(outcome.there)), ("now", repr(outcome.here))])


def _conclude(output: Output, outcomes: Sequence["Outcome"], found: Sequence["Difference"]) -> None:
    same = sum(outcome.identical for outcome in outcomes)
    if output.as_json:
        body = {
            "identical": same == len(outcomes),
            "answers": [_document(outcome) for outcome in outcomes],
            "environment": [asdict(difference) for difference in found],
        }
        output.document("llmctl.replay/1", body)
        return
    if found:
        output.note("what is different here:")
        for difference in found:
            output.note(f"  {difference.key}: then {_short(difference.there)}, now {_short(difference.here)}")
    elif same < len(outcomes):
        output.note(
            "files, versions, hardware and threads are the same: either the recording was changed after the run, or "
            "this model does not repeat itself here; --deterministic asks torch for algorithms that do"
        )
    output.note(f"{same} of {len(outcomes)} identical")


def _document(outcome: "Outcome") -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": outcome.recording.name,
        "identical": outcome.identical,
        "tokens": len(outcome.recording.token_ids),
        "seed": outcome.recording.seed,
    }
    if outcome.remark:
        document["remark"] = outcome.remark
    if not outcome.identical:
        document |= {"index": outcome.index, "before": outcome.before, "then": outcome.there, "now": outcome.here}
    return document


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 70 else f"{text[:69]}…"
