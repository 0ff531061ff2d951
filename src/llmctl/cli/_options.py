"""The parsed command line of one run: values by flag, and the settings that they make."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmctl.cli._flag import Flag
from llmctl.cli._flags import CONFIG, SET, flag_of
from llmctl.cli._render import Output
from llmctl.errors import UserError

if TYPE_CHECKING:
    from llmctl.config import Settings

T = TypeVar("T")
_HIGHEST_TEMPERATURE = 2  # that the API of OpenAI takes


@dataclass(frozen=True)
class Options:
    """The flags and arguments of a command: `options[OFFLINE]` is the value of a flag.

    Attributes:
        output: The output of this run.
        flags: The flags of the command.
        values: The values by parameter name.
    """

    output: Output
    flags: tuple[Flag[Any], ...]
    values: Mapping[str, Any]

    def __getitem__(self, flag: Flag[T]) -> T:
        value: T | None = self.values[flag.parameter]
        return flag.default if value is None else value

    def either(self, first: Flag[T], second: Flag[T]) -> T:
        """Return the value of an argument or of the flag of the same meaning."""
        return self[first] if self.is_given(first) else self[second]

    def is_given(self, flag: Flag[Any]) -> bool:
        """Return True if a flag was given with a value other than its default."""
        return flag in self.flags and self[flag] not in (flag.default, [], ())

    def check_combinations(self) -> None:
        """Refuse flags that would have no effect with, or without, the others.

        Raises:
            UserError: a flag lacks the flag that it needs, or is combined with one that it excludes.
        """
        given = {flag.long: flag for flag in self.flags if self.is_given(flag)}
        for name, flag in given.items():
            if flag.needs is not None and flag.needs not in given:
                raise UserError(f"{name} works only with {flag.needs}", hint=f"give {flag.needs}, or omit {name}")
            if excluded := next((other for other in flag.excludes if other in given), None):
                raise UserError(f"{name} cannot be combined with {excluded}", hint=f"omit {name} or {excluded}")

    def refuse(self, *flags: Flag[Any], reason: str) -> None:
        """Refuse flags that this run has no use for.

        Raises:
            UserError: one of them was given.
        """
        given = [flag.long for flag in flags if self.is_given(flag)]
        if given:
            raise UserError(reason, hint=f"omit {' and '.join(given)}")

    def id_and_revision(
        self, model: "Flag[str] | Flag[str | None]", revision: "Flag[str | None]"
    ) -> tuple[str, str | None]:
        """Return the id and the revision of a model argument, which may be a pasted address of the Hub.

        Raises:
            UserError: the address is not that of a model, or names another revision.
        """
        from llmctl.config.hub_address import id_and_revision

        return id_and_revision(self[model] or "", self[revision])

    def settings(self, *, replace: Mapping[str, Any] | None = None, config: Path | None = None) -> "Settings":
        """Read every layer of the configuration, the flags on top.

        Args:
            replace: Values by configuration key that replace those typed; None means "not given".
            config: The file of `--config`, where the command has several.

        Raises:
            ConfigError: every problem of every layer.
        """
        from llmctl.config.layers import LOCAL_FILE, Entry, read_settings

        entries = {
            flag.key: Entry(flag.value or self[flag], flag.long)
            for flag in self.flags
            if flag.key is not None and self.is_given(flag)
        }
        for key, value in (replace or {}).items():
            entries.pop(key, None)
            if value is not None and (row := flag_of(key)) is not None:
                entries[key] = Entry(value, row.long)
        if CONFIG in self.flags:
            config = self[CONFIG]
            _refuse_number_as_file(config)
        assignments = self[SET] if SET in self.flags else []
        settings = read_settings(config=config, flags=entries, assignments=assignments)
        temperature = settings.config.generation.temperature
        if "generation.temperature" in entries and temperature is not None and temperature > _HIGHEST_TEMPERATURE:
            threads = "; -t is not the number of threads, which is OMP_NUM_THREADS in the environment"
            self.output.warn(f"at a temperature of {temperature:g}, text is nearly random{threads}")
        if any(where.startswith(f"{LOCAL_FILE}:") for where in settings.origins.values()):
            self.output.note_once(f"configuration: {LOCAL_FILE} in the current folder")
        return settings


def _refuse_number_as_file(config: Path | None) -> None:
    """Raise UserError for `-c 4096`, which is the context in llama.cpp."""
    if config is not None and str(config).isdecimal() and not config.exists():
        hint = f"for a context of {config} tokens: --set tokenizer.model_max_length={config}"
        raise UserError(f"--config {config}: no such file", hint=hint)
