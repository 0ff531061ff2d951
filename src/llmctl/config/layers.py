"""The layers of a configuration and their precedence.

defaults < remembered model < user file < ./llmctl.yaml < --config FILE < LLMCTL_* environment < flags and --set

Every value carries its origin (`llmctl.yaml:12`, `LLMCTL_SEED`, `--dtype`), so that a problem can name the line and
`llmctl config show` the layer. All problems of all layers are reported together.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmctl import yaml_reader
from llmctl.config.hub_address import with_ids
from llmctl.config.last_model import CurrentModel, current_model
from llmctl.config.messages import invalid_value, unknown_key
from llmctl.config.schema import Config, all_keys, field_of, sections
from llmctl.config.structure import is_grammar_text, is_schema_text
from llmctl.errors import ConfigError, Problem
from llmctl.paths import config_file
from llmctl.synonyms import same_key
from llmctl.text_files import NotTextError, as_utf8, read_text, reason
from llmctl.yaml_reader import Leaf

LOCAL_FILE = Path("llmctl.yaml")
ENVIRONMENT_PREFIX = "LLMCTL_"
# Variables that are not configuration keys.
RESERVED_VARIABLES = frozenset(
    {"LLMCTL_HOME", "LLMCTL_PLAIN_IMPORTS", "LLMCTL_KERNELS_ISA", "LLMCTL_KERNELS_LIBRARY", "LLMCTL_API_KEY"}
)
SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # keys that turn sampling on
# A smaller temperature could make logits infinite, and the most likely token has all the probability anyway.
GREEDY_BELOW = 1e-6
_FILE_KEYS = ("chat.template", "structure.json_schema", "structure.grammar")  # relative to the configuration file
_SHORT_VARIABLES = {"LLMCTL_MODEL": "model.id"}


@dataclass(frozen=True)
class Entry:
    """A value and its origin."""

    value: Any
    where: str


Layer = dict[str, Entry]


@dataclass(frozen=True)
class Settings:
    """A validated configuration, and the origin of every value that is not a default."""

    config: Config
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Return the origin of a dotted key's value."""
        return self.origins.get(key, "default")

    def is_set(self, key: str) -> bool:
        """Return True if a layer sets this key."""
        return key in self.origins


def read_settings(
    *,
    config: Path | None = None,
    flags: Mapping[str, Entry] | None = None,
    assignments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Read every layer and join them.

    Args:
        config: The file of `--config`; it must exist.
        flags: Values of command-line flags by dotted key.
        assignments: The `--set key.path=value` texts.
        environ: The environment; by default that of the process.
        folder: The folder of `llmctl.yaml`; by default the current one.

    Raises:
        ConfigError: every problem of every layer.
    """
    problems: list[Problem] = []
    layers: list[Layer] = [_remembered(current_model())]
    local = (folder or Path()) / LOCAL_FILE
    layers += [read_file(path, problems) for path in (config_file(), local) if _is_there(path)]
    if config is not None:
        layers.append(read_file(config, problems))
    layers.append(_from_environment(os.environ if environ is None else environ, problems))
    layers.append(dict(flags or {}) | _from_assignments(assignments, problems))
    return join(layers, problems)


def _is_there(path: Path) -> bool:
    """Return True for a file, and for what cannot be looked at: reading it reports why."""
    try:
        return path.is_file()
    except OSError:
        return True


def settings_from_mapping(values: Mapping[str, Any], *, where: str = "argument") -> Settings:
    """Return settings made of nested Python values and the defaults, for users of the library.

    Raises:
        ConfigError: every problem.
    """
    problems: list[Problem] = []
    layer: Layer = {}
    for key, value in _flatten(values):
        name = same_key(key)
        if name not in all_keys():
            problems.append(Problem(where, key, unknown_key(key)))
        elif name in layer:
            problems.append(Problem(where, key, f"{name} has this meaning and is given too"))
        else:
            layer[name] = Entry(value, where)
    return join([layer], problems)


def read_only_file(path: Path) -> Settings:
    """Return settings made of one file and the defaults, as `llmctl config validate` checks them."""
    problems: list[Problem] = []
    return join([read_file(path, problems)], problems)


def join(layers: Sequence[Layer], problems: list[Problem]) -> Settings:
    """Check each layer on its own, then merge them; later layers take precedence.

    A layer that names a model drops the revision and the adapters that a lower layer gave to another model. A layer
    that sets a structure drops the structure of a lower layer. One that chooses between sampling and greedy drops what
    a lower layer says against it.
    """
    merged: Layer = {}
    for layer in (with_ids(layer, problems) for layer in layers):
        problems += _check(layer)
        for section in ("model", "draft"):
            if f"{section}.id" in layer:
                merged.pop(f"{section}.revision", None)
        if "model.id" in layer:
            merged.pop("model.adapters", None)
        if any(key.startswith("structure.") for key in layer):
            merged = {key: entry for key, entry in merged.items() if not key.startswith("structure.")}
        for name in superseded_sampling(_generation(layer), _generation(merged)):
            merged.pop(f"generation.{name}", None)
        merged |= layer
    if problems:
        raise ConfigError(sorted(problems, key=_by_line))
    return Settings(Config.model_validate(_nest(merged)), {key: entry.where for key, entry in merged.items()})


def superseded_sampling(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> set[str]:
    """Return the keys of `generation` that those of a later layer or request supersede.

    A later sampling key supersedes an earlier `do_sample: false`, a later `do_sample: false` the earlier sampling keys,
    and a later `do_sample: true` an earlier temperature that means greedy.
    """
    if later.get("do_sample") is False:
        return set(SAMPLING_KEYS)
    superseded = {"do_sample"} if any(later.get(name) is not None for name in SAMPLING_KEYS) else set()
    temperature = earlier.get("temperature")
    if later.get("do_sample") and isinstance(temperature, int | float) and temperature < GREEDY_BELOW:
        superseded.add("temperature")
    return superseded


def _generation(layer: Layer) -> dict[str, Any]:
    """Return the values of the section `generation` in a layer."""
    return {k.rpartition(".")[2]: entry.value for k, entry in layer.items() if k.startswith("generation.")}


def _by_line(problem: Problem) -> tuple[str, int]:
    """Sort a report by file, then by line."""
    where, _, line = problem.where.rpartition(":")
    return (where, int(line)) if line.isdigit() else (problem.where, 0)


def read_file(path: Path, problems: list[Problem]) -> Layer:
    """Return the values of a YAML file with their lines, and append its problems to `problems`."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        problems.append(Problem(str(path), "", "no such file"))
        return {}
    except (OSError, NotTextError) as error:
        problems.append(Problem(str(path), "", reason(error)))
        return {}
    try:
        root = yaml_reader.parse(text)
    except yaml_reader.ValueProblem as problem:
        problems.append(Problem(f"{path}:{problem.line}" if problem.line else str(path), "", problem.message))
        return {}
    layer: Layer = {}
    for leaf in _leaves(root, str(path), problems):
        key, where = same_key(leaf.key), f"{path}:{leaf.line}"
        if key not in all_keys():
            problems.append(Problem(where, leaf.key, unknown_key(leaf.key)))
            continue
        if key in layer:
            problems.append(Problem(where, leaf.key, f"{layer[key].where} gives {key}, which has this meaning"))
            continue
        try:
            value = yaml_reader.read(leaf.node, field_of(key).annotation, line=leaf.line)
        except yaml_reader.ValueProblem as problem:
            problems.append(Problem(f"{path}:{problem.line}", leaf.key, problem.message))
            continue
        layer[key] = Entry(_relative_to(path, key, value), where)
    return layer


def _leaves(root: Any, path: str, problems: list[Problem]) -> Iterator[Leaf]:
    """Yield each key with its node; sections are opened, other mappings are values."""
    if root is None:
        return
    for leaf in _entries(root, path, "", problems):
        if leaf.key not in sections():
            yield leaf
        elif isinstance(leaf.node.value, str):
            if leaf.node.value not in ("", "~", "null"):
                text = "this is a section: write its keys on the next lines, indented"
                problems.append(Problem(f"{path}:{leaf.line}", leaf.key, text))
        else:
            yield from _entries(leaf.node, path, f"{leaf.key}.", problems)


def _entries(node: Any, path: str, prefix: str, problems: list[Problem]) -> Iterator[Leaf]:
    if not yaml_reader.is_mapping(node):
        text = "must be a mapping of keys to values" if prefix else "the file must be a mapping of sections"
        problems.append(Problem(f"{path}:{node.start_mark.line + 1}", prefix.removesuffix("."), text))
        return
    for entry in yaml_reader.entries(node):
        if isinstance(entry, Problem):
            problems.append(Problem(f"{path}:{entry.where}", f"{prefix}{entry.key}".removesuffix("."), entry.message))
        else:
            yield Leaf(prefix + entry.key, entry.line, entry.node)


def _relative_to(path: Path, key: str, value: Any) -> Any:
    """Resolve a relative path against the folder of its file. A model id that begins with a dot is a path."""
    if key == "vllm.python" and isinstance(value, str) and value.startswith(("./", "../")):
        return str(path.parent.absolute() / value)  # not resolved: the link identifies the virtual environment
    if key == "model.adapters" and isinstance(value, list):
        return [_relative_to(path, key, one) for one in value]
    if key == "model.adapters" and isinstance(value, dict) and "id" in value:
        return {**value, "id": _relative_to(path, key, value["id"])}
    if isinstance(value, str) and value and "\0" not in value:
        is_folder = key in ("model.id", "model.adapters", "draft.id") and value.startswith(("./", "../"))
        is_text = (key == "structure.json_schema" and is_schema_text(value)) or (
            key == "structure.grammar" and is_grammar_text(value)
        )
        is_file = key in _FILE_KEYS and not is_text and not value.startswith(("/", "~"))
        if is_folder or is_file:
            return str((path.parent / value).resolve())
    return value


def _remembered(current: CurrentModel | None) -> Layer:
    if current is None:
        return {}
    where = f"llmctl {current.how}, {current.when[:10]}"
    layer = {"model.id": Entry(current.model, where)}
    if current.revision:
        layer["model.revision"] = Entry(current.revision, where)
    return layer


def _from_environment(environ: Mapping[str, str], problems: list[Problem]) -> Layer:
    """Return the layer of variables such as `LLMCTL_MODEL`, `LLMCTL_SEED` and `LLMCTL_LOAD__DTYPE`."""
    layer: Layer = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED_VARIABLES or not text:
            continue
        key = _SHORT_VARIABLES.get(name, name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."))
        _put(layer, key, text, name, problems)
    return layer


def _from_assignments(assignments: Sequence[str], problems: list[Problem]) -> Layer:
    layer: Layer = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            problems.append(Problem(f"--set {assignment}", "", "write it as key.path=value"))
            continue
        _put(layer, key.strip(), text, "--set", problems)
    return layer


def _put(layer: Layer, key: str, text: str, where: str, problems: list[Problem]) -> None:
    """Add a value given as text: the text itself if the key takes text, otherwise its YAML value."""
    if same_key(key) not in all_keys():
        problems.append(Problem(where, key, unknown_key(key)))
        return
    key = same_key(key)
    wanted = field_of(key).annotation
    try:
        text = as_utf8(text)
    except NotTextError as error:
        problems.append(Problem(where, key, reason(error)))
        return
    if wanted in (str, str | None):
        layer[key] = Entry(None if text.lower() in ("null", "~") else text, where)
        return
    try:
        node = yaml_reader.parse(text)
    except yaml_reader.ValueProblem:
        layer[key] = Entry(text, where)
        return
    try:
        layer[key] = Entry(None if node is None else yaml_reader.read(node, wanted, line=1), where)
    except yaml_reader.ValueProblem as problem:
        problems.append(Problem(where, key, problem.message))


def _check(layer: Layer) -> list[Problem]:
    """Validate one layer and return pydantic's errors in llmctl's words, one per key."""
    try:
        Config.model_validate(_nest(layer))
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for item in error.errors(include_url=False):
            candidates = (
                ".".join(map(str, item["loc"][:2])),
                str(item["loc"][0]),
                *_keys_of_section(layer, item["loc"][0]),
            )
            key = next(k for k in candidates if k in layer)
            entry = layer[key]
            if key not in problems:
                problems[key] = Problem(entry.where, key, invalid_value(key, item, entry.value))
        return list(problems.values())
    return []


def _keys_of_section(layer: Layer, section: Any) -> list[str]:
    """Return the keys of a section that a layer sets, the last one first: it is usually the surplus one."""
    return [key for key in reversed(layer) if key.startswith(f"{section}.")]


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    names = sections()
    for name, value in values.items():
        if name in names and isinstance(value, Mapping):
            for inner, leaf in value.items():
                yield f"{name}.{inner}", leaf
        else:
            yield name, value


def _nest(layer: Layer) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, entry in layer.items():
        section, _, inner = key.partition(".")
        if inner:
            nested.setdefault(section, {})[inner] = entry.value
        else:
            nested[section] = entry.value
    return nested
