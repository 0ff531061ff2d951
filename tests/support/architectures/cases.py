"""The model types of the installed transformers, and the results of earlier checks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / ".architectures"


@dataclass(frozen=True)
class Case:
    """A model type, as a causal language model or as a composite of text and images."""

    model_type: str
    is_composite: bool


def all_cases() -> list[Case]:
    """Return every type of the installed transformers."""
    from transformers.models.auto import modeling_auto as auto

    causal, composite = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return [Case(name, False) for name in sorted(causal)] + [Case(name, True) for name in sorted(composite)]


def results_file() -> Path:
    """Return the file of results for the installed transformers."""
    import transformers

    return RESULTS / f"transformers-{transformers.__version__}.jsonl"


def results_files() -> list[Path]:
    """Return the files of results, oldest transformers first."""
    return sorted(RESULTS.glob("*.jsonl"), key=lambda file: [int(part) for part in file.stem.split("-")[1].split(".")])


def read_results(file: Path) -> dict[Case, dict[str, Any]]:
    """Return the last result of each case."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    documents = [json.loads(line) for line in lines]
    return {Case(document["model_type"], document["is_composite"]): document for document in documents}
