"""The selection of the files that are needed to load a model, by their names. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from llmctl.errors import ModelError, UserError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

_SMALL = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tekken.json",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    }
)
_SMALL_PATTERNS = ("*.model", "*.tiktoken", "*.spm", "additional_chat_templates/*.jinja")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "*.model",
    "*.spm",
    "tekken.json",
)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_GGUF = (".gguf", ".ggml")
_ONNX = (".onnx", ".onnx_data", ".ort")
_OTHERS = (".h5", ".msgpack", ".tflite", ".mlmodel", ".ot")
_NEVER_FOLDERS = ("original/", "onnx/", "gguf/", ".git/")


@dataclass(frozen=True)
class Patterns:
    """The user's selection of files.

    Attributes:
        include: Shell patterns of files to select; if empty, the files needed for loading.
        exclude: Shell patterns of files to exclude.
        trust_remote_code: Also select the repository's Python files.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    trust_remote_code: bool = False


def needed(names: Iterable[str], *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the names of the files needed for loading, sorted; empty if there are no weights that llmctl can load.

    If there are several copies of the weights, those that transformers 5 would load are taken: `model.safetensors`
    before the shards of `model.safetensors.index.json`
    (`transformers.modeling_utils._get_resolved_checkpoint_files`), and never `consolidated.safetensors`, which is
    another program's layout of the same numbers. An adapter needs its two files.
    """
    names = set(names)
    weights = _weights(names)
    if not weights:
        return ADAPTER if names.issuperset(ADAPTER) else ()
    small = {name for name in names if name in _SMALL or any(fnmatchcase(name, p) for p in _SMALL_PATTERNS)}
    code = {name for name in names if name.endswith(".py")} if trust_remote_code else set()
    return tuple(sorted(n for n in weights | small | code if not is_forbidden(n)))


def required(needed_names: Iterable[str], taken: Iterable[str]) -> tuple[str, ...]:
    """Return the files without which a user's selection is incomplete, sorted.

    These are all selected files, and in any case what no model loads without: the configuration, the weights, and a
    tokenizer if the repository has one. Anything else that was left out on purpose (a template, say) is not missed.
    """
    wanted, chosen = set(needed_names), set(taken)
    always = {n for n in wanted if n in ("config.json", WEIGHTS_INDEX) or n.endswith(".safetensors")}
    tokenizer = {n for n in wanted if is_tokenizer(n)}
    return tuple(sorted(always | (wanted & chosen) | (set() if tokenizer & chosen else tokenizer)))


def select(repo_id: str, names: Iterable[str], patterns: Patterns) -> tuple[str, ...]:
    """Return the names that `patterns` select, sorted.

    Raises:
        ModelError: the repository has no weights that llmctl loads.
        UserError: the patterns leave nothing, or only files that llmctl never takes.
    """
    names = tuple(names)
    if patterns.include:
        matching = [n for n in names if _matches(n, patterns.include)]
        taken = [n for n in matching if not is_forbidden(n) and (patterns.trust_remote_code or not n.endswith(".py"))]
        if matching and not taken:
            raise UserError(
                f"--include matches only files that llmctl does not download: {_some(matching)}",
                hint="pickles can run code when they are read, and the other files are for other programs",
            )
    else:
        taken = list(needed(names, trust_remote_code=patterns.trust_remote_code))
        if not taken:
            raise no_weights(repo_id, names)
    taken = [n for n in taken if not _matches(n, patterns.exclude)]
    if not taken:
        raise UserError(f"--include and --exclude exclude all files of {repo_id}", hint="see: llmctl models info")
    return tuple(sorted(taken))


def is_forbidden(name: str) -> bool:
    """Return True if llmctl never downloads a file of this name: pickles, and weights for other programs."""
    lower = name.lower()
    return lower.endswith(_PICKLES + _GGUF + _ONNX + _OTHERS) or lower.startswith(_NEVER_FOLDERS)


def no_weights(repo_id: str, names: Sequence[str]) -> ModelError:
    """Return the error for a repository without weights that llmctl can load, which names other weights and a fix."""
    by_kind = {
        kind: [n for n in names if n.lower().endswith(suffixes)]
        for kind, suffixes in (
            ("pickle", _PICKLES),
            ("GGUF", _GGUF),
            ("ONNX", _ONNX),
            ("safetensors", (".safetensors",)),
        )
    }
    details = {"files": {kind: files for kind, files in by_kind.items() if files}}
    if by_kind["safetensors"]:
        return ModelError(
            f"{repo_id} has no {WEIGHTS} and no {WEIGHTS_INDEX}, only {_some(by_kind['safetensors'])}",
            hint="an adapter, or a model for another library: look at its page for the model to load",
            details=details,
        )
    if by_kind["pickle"]:
        return ModelError(
            f"{repo_id} has its weights only as pickles ({_some(by_kind['pickle'])}), which can run code when read",
            hint="look for a safetensors copy in its discussions, or convert it in a sandbox: "
            "https://huggingface.co/spaces/safetensors/convert",
            details=details,
        )
    for kind, program in (("GGUF", ", which is for llama.cpp"), ("ONNX", "")):
        if by_kind[kind]:
            return ModelError(
                f"{repo_id} has its weights only as {kind} ({_some(by_kind[kind])}){program}",
                hint="use the safetensors original; the page of the repository names it under 'Model tree'",
                details=details,
            )
    return ModelError(f"{repo_id} has no weights", hint="look at its page for the model to load", details=details)


def is_tokenizer(name: str) -> bool:
    """Return True if a file of this name can be a tokenizer's vocabulary."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER)


def _weights(names: set[str]) -> set[str]:
    if WEIGHTS in names:
        return {WEIGHTS}
    if WEIGHTS_INDEX in names:
        shards = {n for n in names if _SHARD.fullmatch(n)}
        # Shards may have any names; then every safetensors file next to the index counts, except the other layout.
        other = {n for n in names if n.endswith(".safetensors") and "/" not in n and not n.startswith("consolidated")}
        return {WEIGHTS_INDEX} | (shards or other)
    return set()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p + "*" if p.endswith("/") else p) for p in patterns)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
