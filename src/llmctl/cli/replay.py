"""`llmctl replay`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli._command import command, new_app
from llmctl.cli._flag import files, required_path
from llmctl.cli._flags import DRAFT, MODEL, OVERCOMMIT, TRUST_REMOTE_CODE
from llmctl.cli._loading import load_model, prepare_model, show_hashing
from llmctl.cli._options import Options
from llmctl.cli._render import Output
from llmctl.errors import EXIT_NO

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel
    from llmctl.reproduce.manifest import Manifest
    from llmctl.reproduce.replay import Difference, Outcome

app = new_app()

FILE = required_path("FILE", help="Output of llmctl generate --json, or JSON Lines of it")

IMAGE = files("--image", group="Replay", help="Image of a recorded prompt: the same picture, found by its hash")


@command(app, FILE, IMAGE, MODEL, TRUST_REMOTE_CODE, OVERCOMMIT, DRAFT)
def replay(options: Options) -> None:
    """Repeat recorded answers and show where they differ.

    The model's files must have the hashes of the recording; nothing is downloaded. The exit code is 0 if every answer
    is identical, token by token, and 1 otherwise. A recording has the hashes of its images, not their files: give the
    same pictures with --image. A recording is data: its settings must pass the schema, and the
    model's own code runs only with --trust-remote-code.

    Examples:

      llmctl generate --prompt "Tell me a story" --temperature 0.8 --json > run.json

      llmctl replay run.json

      llmctl replay run.json --model ./the-same-model --json
    """
    from llmctl.generation.image_input import read_images
    from llmctl.reproduce import replay as core
    from llmctl.reproduce.recordings import Recording, loading_key, read_recordings

    output = options.output
    recordings = read_recordings(options[FILE])
    pictures = read_images([file.expanduser() for file in options[IMAGE]])
    core.check_images(recordings, pictures)
    groups: dict[str, list[Recording]] = {}
    for recording in recordings:
        groups.setdefault(loading_key(recording.manifest), []).append(recording)
    outcomes: list[Outcome] = []
    differences: list[Difference] = []
    for group in groups.values():
        loaded = _load(options, group[0].manifest)
        differences += [d for d in core.environment_differences(group[0].manifest, loaded) if d not in differences]
        for recording in group:
            with output.waiting(f"replaying {recording.name}"):
                outcomes.append(core.replay(loaded, core.with_images(loaded, recording, pictures)))
            if not output.as_json:
                _show_outcome(output, outcomes[-1])
        del loaded
    _conclude(output, outcomes, differences)
    if not all(outcome.identical for outcome in outcomes):
        raise typer.Exit(EXIT_NO)


def _load(options: Options, manifest: "Manifest") -> "LoadedModel":
    from llmctl.machine.threads import use_threads_of_recording
    from llmctl.reproduce.replay import check_files, loading_settings

    output = options.output
    settings = loading_settings(
        manifest,
        model=options[MODEL],
        draft=options[DRAFT],
        trust_remote_code=bool(options[TRUST_REMOTE_CODE]),
        overcommit=bool(options[OVERCOMMIT]),
    )
    prepared = prepare_model(output, settings, offline=True)
    with show_hashing(output, prepared.resolved):
        check_files(manifest, prepared)
    loaded = load_model(output, prepared)
    use_threads_of_recording(manifest.hardware.threads)
    return loaded


def _show_outcome(output: Output, outcome: "Outcome") -> None:
    name, count = outcome.recording.name, len(outcome.recording.token_ids)
    if outcome.remark:
        output.warn(f"{name}: {outcome.remark}")
    if outcome.index is None:
        output.line(f"{name}: identical, {count} token{'s' * (count != 1)}")
        return
    output.line(f"{name}: different from token {outcome.index} on, of {count}")
    output.pairs([("after", repr(outcome.before)), ("then", repr(outcome.recorded)), ("now", repr(outcome.current))])


def _conclude(output: Output, outcomes: Sequence["Outcome"], differences: Sequence["Difference"]) -> None:
    same = sum(outcome.identical for outcome in outcomes)
    if output.as_json:
        body = {
            "identical": same == len(outcomes),
            "answers": [_document(outcome) for outcome in outcomes],
            "environment": [asdict(difference) for difference in differences],
        }
        output.document("llmctl.replay/1", body)
        return
    if differences:
        output.note("differences of this machine:")
        for difference in differences:
            output.note(f"  {difference.key}: then {_short(difference.recorded)}, now {_short(difference.current)}")
    elif same < len(outcomes):
        output.note(
            "files, versions, hardware and threads are the same: either the recording was edited, or this model is "
            "not deterministic here; --deterministic selects torch's deterministic algorithms"
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
        document |= {"index": outcome.index, "before": outcome.before, "then": outcome.recorded, "now": outcome.current}
    return document


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 70 else f"{text[:69]}…"
