"""A command-line flag: its names, its type, its help, and the configuration key that it sets.

Values of flags with a key stay the text that was typed: the schema checks them together with every other layer, so
that one mistake gives one message.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from llmctl.synonyms import names_of, values_of

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flag(Generic[T_co]):
    """A row of the table of flags. An argument is a flag whose one name has no dashes.

    Attributes:
        names: The spellings, the long one first: ("--prompt", "-p").
        help: A noun phrase or an imperative, without the default.
        annotation: The type that Typer converts the text to.
        default: The value when the flag is not given.
        metavar: The type that the help shows; None for a switch.
        default_text: The default in words; by default that of the key, or `default` itself.
        group: The title of its section in the help.
        key: The dotted configuration key that it sets, if any.
        not_in: The commands that take its group but not this flag, which would have no effect there.
        needs: The name of another flag, without which it is refused.
        excludes: The names of other flags, with which it is refused.
        minimum: The lowest number.
        maximum: The highest number.
        is_required: True for an argument or an option that must be given.
        value: The value of its key that a switch stands for, as --load-in-4bit does.
        is_hidden: True for a flag that works and is not in the help.
    """

    names: tuple[str, ...]
    help: str
    annotation: Any
    default: T_co
    metavar: str | None = None
    default_text: str = ""
    group: str = "Options"
    key: str | None = None
    not_in: tuple[str, ...] = ()
    needs: str | None = None
    excludes: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    is_required: bool = False
    value: Any = None
    is_hidden: bool = False

    @property
    def long(self) -> str:
        """The name in messages: `--quant-cache`, or `FILE` for an argument."""
        return self.names[0].partition("/")[0]

    @property
    def parameter(self) -> str:
        """The name among a command's parameters: `quant_cache`, or `file_argument` for an argument."""
        name = self.long.removeprefix("--").replace("-", "_").lower()
        return f"{name}_argument" if self.is_argument else f"as_{name}" if name[0].isdecimal() else name

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name that is in the help, those of a switch one by one."""
        return tuple(part for name in self.names for part in name.split("/"))

    def aliases(self, taken: Collection[str] = ()) -> tuple[str, ...]:
        """Return the names that other tools have for this flag, without those in `taken`."""
        options = (f"--{name.replace('_', '-')}" for name in names_of(self.key or ""))
        return () if self.is_argument or self.is_hidden else tuple(name for name in options if name not in taken)

    def value_switches(self, taken: Collection[str] = ()) -> "Iterator[Flag[Any]]":
        """Yield a hidden switch for each name that stands for one value of this flag's key, as --load-in-4bit does."""
        for name, value in () if self.is_argument else values_of(self.key or "").items():
            option = f"--{name.replace('_', '-')}"
            if option not in taken:
                yield Flag(
                    names=(option,), key=self.key, value=value, is_hidden=True, excludes=(self.long,),
                    help=f"The same as {self.long} {value}", annotation=bool, default=False,
                )  # fmt: skip

    @property
    def is_argument(self) -> bool:
        """True for a positional argument."""
        return not self.long.startswith("-")

    def signature(self, taken: Collection[str] = ()) -> Parameter:
        """Return the parameter from which Typer makes the option; it has no alias that is in `taken`."""
        info: Any
        if self.is_argument:
            info = typer.Argument(metavar=self.metavar, help=self.help, show_default=False)
        else:
            info = typer.Option(
                *self.names,
                *self.aliases(taken),
                hidden=self.is_hidden,
                metavar=self.metavar,
                help=self.help,
                min=self.minimum,
                max=self.maximum,
                show_default=False,
            )
        default: Any = self.default or None if isinstance(self.default, list) else self.default
        return Parameter(
            self.parameter,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if self.is_required else default,
            annotation=Annotated[self.annotation, info],
        )

    def spelling(self) -> str:
        """Return the left column of the help: `-p, --prompt TEXT`."""
        if self.is_argument:
            return str(self.metavar) if self.is_required else f"[{self.metavar}]"
        on, slash, off = self.names[0].partition("/")
        names = [*self.names[1:], f"{on} / {off}" if slash else on]
        return ", ".join(names) + (f" {self.metavar}" if self.metavar else "")

    def description(self) -> str:
        """Return the right column of the help: the meaning, and the default or `repeatable`."""
        notes = []
        if self.is_required:
            notes.append("required")
        elif isinstance(self.default, list) and not self.default_text:
            notes.append("repeatable")
        elif default := self._shown_default():
            notes.append(f"default: {default}")
        return self.help + (f" ({'; '.join(notes)})" if notes else "")

    def _shown_default(self) -> str:
        if self.default_text:
            return self.default_text
        value: Any = self.default
        if self.key is not None:
            from llmctl.config.schema import default_of

            value = default_of(self.key)
            if value is True:
                return "on"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return "" if isinstance(value, bool) or value in (None, "", [], {}) else str(value)


def text(*names: str, help: str, metavar: str = "TEXT", **row: Any) -> Flag[str | None]:
    """Return a flag whose value is a text."""
    return Flag(names=names, help=help, annotation=str | None, default=None, metavar=metavar, **row)


def texts(*names: str, help: str, metavar: str = "TEXT", **row: Any) -> Flag[list[str]]:
    """Return a flag that can be repeated."""
    return Flag(names=names, help=help, annotation=list[str] | None, default=[], metavar=metavar, **row)


def file(*names: str, help: str, metavar: str = "FILE", **row: Any) -> Flag[Path | None]:
    """Return a flag whose value is a path."""
    return Flag(names=names, help=help, annotation=Path | None, default=None, metavar=metavar, **row)


def required_path(*names: str, help: str, metavar: str = "FILE", **row: Any) -> Flag[Path]:
    """Return an argument or a flag that must be given and is a path."""
    return Flag(names=names, help=help, annotation=Path, default=Path(), metavar=metavar, is_required=True, **row)


def files(*names: str, help: str, metavar: str = "FILE", **row: Any) -> Flag[list[Path]]:
    """Return a flag whose values are paths."""
    return Flag(names=names, help=help, annotation=list[Path] | None, default=[], metavar=metavar, **row)


def integer(*names: str, help: str, default: int, **row: Any) -> Flag[int]:
    """Return a flag whose value is a whole number that Typer checks."""
    return Flag(names=names, help=help, annotation=int, default=default, metavar="INTEGER", **row)


def optional_integer(*names: str, help: str, **row: Any) -> Flag[int | None]:
    """Return a flag whose value is a whole number, or None."""
    return Flag(names=names, help=help, annotation=int | None, default=None, metavar="INTEGER", **row)


def number(*names: str, help: str, default: float, **row: Any) -> Flag[float]:
    """Return a flag whose value is a number that Typer checks."""
    return Flag(names=names, help=help, annotation=float, default=default, metavar="NUMBER", **row)


def switch(*names: str, help: str, **row: Any) -> Flag[bool]:
    """Return a flag without a value."""
    return Flag(names=names, help=help, annotation=bool, default=False, **row)


def setting(*names: str, key: str, metavar: str | None = "TEXT", **row: Any) -> Flag[Any]:
    """Return a flag that sets a configuration key; without a metavar it is a switch."""
    annotation: Any = bool | None if metavar is None else str | None
    return Flag(names=names, key=key, annotation=annotation, default=None, metavar=metavar, **row)


def settings_list(*names: str, key: str, metavar: str = "TEXT", **row: Any) -> Flag[Any]:
    """Return a flag that can be repeated and sets a configuration key that is a list."""
    return Flag(names=names, key=key, annotation=list[str] | None, default=[], metavar=metavar, **row)


def by_group(flags: Sequence[Flag[Any]]) -> Iterator[tuple[str, list[Flag[Any]]]]:
    """Yield the sections of a command's help, in the order of their first flags; arguments come first."""
    flags = [flag for flag in flags if not flag.is_hidden]
    titles = dict.fromkeys("Arguments" if flag.is_argument else flag.group for flag in flags)
    for title in sorted(titles, key=lambda title: title != "Arguments"):
        yield title, [flag for flag in flags if ("Arguments" if flag.is_argument else flag.group) == title]
