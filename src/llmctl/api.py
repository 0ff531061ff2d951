"""The functions of the library: load, stream, generate, chat, generate_object, generate_batch, score, rank."""

import asyncio
import difflib
import gc
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from llmctl.config import Config, Settings, settings_from_mapping
from llmctl.config.layers import read_only_file
from llmctl.config.schema import sections
from llmctl.errors import UserError
from llmctl.generation import scoring
from llmctl.generation import stream as streaming
from llmctl.generation.batch import answers
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.completion import Chunk, Completion
from llmctl.generation.image_input import ImageSource, with_images
from llmctl.generation.overrides import with_generation
from llmctl.generation.prompt import Messages
from llmctl.generation.scoring import RankedChoice, Score
from llmctl.generation.structured import objects
from llmctl.hub.environment import check_imports
from llmctl.loading import loader
from llmctl.loading.model import LoadedModel
from llmctl.synonyms import find_synonym

__all__ = ["Model", "generate", "generate_batch", "generate_object", "load", "rank", "score", "stream"]

T = TypeVar("T")
LoadedT = TypeVar("LoadedT", bound=LoadedModel)
_SECTIONS = ("generation", "structure", "chat")


class Model(LoadedModel):
    """A model in memory, with the functions of the library as methods. As a context manager it is closed at the end.

    Settings of a method are those of the sections `generation`, `structure` and `chat`, and `seed`; they hold for this
    call only: `model.generate("Name a colour", temperature=0.7, max_new_tokens=64, system="Be brief.", stop="\\n")`.
    """

    @overload
    def generate(
        self, prompt: str | Messages, *, images: Sequence[ImageSource] = (), **settings: Any
    ) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str | Messages], **settings: Any) -> list[Completion]: ...
    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Return the answer to a prompt, or the answers to a list of prompts. See `llmctl.generate`."""
        return generate(self, prompt, **settings)

    def stream(self, prompt: str | Messages, *, images: Sequence[ImageSource] = (), **settings: Any) -> Iterator[Chunk]:
        """Yield the answer to a prompt, piece by piece. See `llmctl.stream`."""
        return stream(self, prompt, images=images, **settings)

    async def agenerate(self, prompt: Any, **settings: Any) -> Any:
        """Return the result of `generate` without blocking the event loop."""
        return await asyncio.to_thread(lambda: generate(self, prompt, **settings))

    async def astream(
        self, prompt: str | Messages, *, images: Sequence[ImageSource] = (), **settings: Any
    ) -> AsyncIterator[Chunk]:
        """Yield the chunks of `stream` without blocking the event loop."""
        chunks = iter(stream(self, prompt, images=images, **settings))
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            await asyncio.to_thread(getattr(chunks, "close", lambda: None))

    def chat(self, **settings: Any) -> ChatSession:
        """Return a conversation with `send`, `stream`, `retry`, `edit`, `undo` and `history`.

        What a turn has computed is kept for the next. Raises UserError for an unknown setting.
        """
        return ChatSession(_with_settings(self, settings))

    def generate_object(
        self, prompt: str | Messages, shape: type[T], *, images: Sequence[ImageSource] = (), **settings: Any
    ) -> T:
        """Return an answer as an object of a type. See `llmctl.generate_object`."""
        return generate_object(self, prompt, shape, images=images, **settings)

    def score(self, text: str, **options: Any) -> Score:
        """Return the log-probabilities of a text. See `llmctl.score`."""
        return scoring.score(self, text, **options)

    def rank(self, prompt: str | Messages, choices: Sequence[str], **options: Any) -> list[RankedChoice]:
        """Return choices, the most likely first. See `llmctl.rank`."""
        return list(scoring.rank(self, prompt, choices, **options))

    def close(self) -> None:
        """Free the memory of the model. It cannot be used afterwards."""
        import torch

        object.__setattr__(self, "model", None)
        object.__setattr__(self, "draft", None)
        gc.collect()  # modules refer to each other in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        devices = " and ".join(self.plan.devices)
        return f"Model({self.plan.source!r}, {self.plan.model_kwargs.get('dtype')}, on {devices})"


def load(
    model: str | Path | None = None,
    *,
    config: Config | Settings | Path | str | None = None,
    adapters: Sequence[str | Path | Mapping[str, Any]] = (),
    merge_adapters: bool = False,
    offline: bool = False,
    **sections: Mapping[str, Any] | int | bool | str,
) -> Model:
    """Load a model as `llmctl load` does, but without reading the user's configuration file or the environment.

    Args:
        model: A Hub id or a folder; by default the configuration's model, or the small default.
        config: A `Config`, `Settings`, or the path of a YAML file.
        adapters: LoRA adapters to put on the model: ids, folders, or {"id": …, "revision": …, "scale": …}.
        merge_adapters: Add the adapters to the model's own weights.
        offline: Never use the network.
        sections: Overrides of the configuration: `quantization="4bit"`, `load={"dtype": "bfloat16"}`, `seed=7`.

    Returns:
        The model in eval mode and its tokenizer, with methods: `model.generate(…)`, `model.chat()`.

    Raises:
        ConfigError: all problems of the configuration.
        LlmctlError: see `llmctl.loading.loader.load`.
    """
    check_imports()
    settings = _settings(config)
    values: dict[str, Any] = settings.config.model_dump(exclude_unset=True) if config is not None else {}
    if isinstance(sections.get("quantization"), str | int):
        sections["quantization"] = {"bits": sections["quantization"]}
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, Mapping) else value
    if model is not None:
        values["model"] = {**values.get("model", {}), "id": str(model)}
    if adapters or merge_adapters:
        specs = [dict(item) if isinstance(item, Mapping) else {"id": str(item)} for item in adapters]
        values["model"] = {**values.get("model", {}), "adapters": specs, "merge_adapters": merge_adapters}
    loaded = loader.load(settings_from_mapping(values), offline=offline)
    return Model(**{name: getattr(loaded, name) for name in LoadedModel.__dataclass_fields__})


def _settings(config: Config | Settings | Path | str | None) -> Settings:
    if config is None:
        return Settings(Config())
    if isinstance(config, Settings):
        return config
    if isinstance(config, Config):
        return Settings(config)
    path = Path(config)
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}")
    return read_only_file(path)


def stream(
    loaded: LoadedModel, prompt: str | Messages, *, images: Sequence[ImageSource] = (), **settings: Any
) -> Iterator[Chunk]:
    """Yield one answer, piece by piece: `chunk.text` is text of the answer, `chunk.reasoning` the model's reasoning.

    Args:
        loaded: The model.
        prompt: A text, or messages of the form {"role": …, "content": …}. A content may be a list of parts:
            {"type": "text", "text": …} and {"type": "image", "image": …}.
        images: Images before the text, for models that take them: paths, contents of files, or PIL images.
        settings: Keys of the sections `generation`, `structure` and `chat`, and `seed`, for this answer only:
            `temperature=0.7`, `max_new_tokens=64`, `system="Be brief."`, `stop="\\n"`, `json_schema={…}`.

    Yields:
        Chunks; the last one carries the `Completion`. Closing the iterator early stops the model at its next token.

    Raises:
        UserError: an unknown setting, a wrong value, or a prompt that is empty or longer than the model's context.
        MachineError: memory ran out.
    """
    return streaming.stream(_with_settings(loaded, settings), with_images(prompt, images))


@overload
def generate(
    loaded: LoadedModel, prompt: str | Messages, *, images: Sequence[ImageSource] = (), **settings: Any
) -> Completion: ...
@overload
def generate(loaded: LoadedModel, prompt: Sequence[str | Messages], **settings: Any) -> list[Completion]: ...
def generate(loaded: LoadedModel, prompt: Any, *, images: Sequence[ImageSource] = (), **settings: Any) -> Any:
    """Return the answer to a prompt when it is complete, or the answers to a list of prompts, computed together.

    Settings and errors are those of `stream`. An error in one of several prompts is raised; `generate_batch` reports it
    beside the other answers.
    """
    configured = _with_settings(loaded, settings)
    if not _is_list_of_prompts(prompt):
        return streaming.generate(configured, with_images(prompt, images))
    if images:
        raise UserError(
            "images of a list of prompts belong to its messages",
            hint='give messages with parts: {"type": "image", "image": path}',
        )
    rows = answers.generate_batch(configured, prompt)
    return [row.completion if row.completion is not None else row.raise_error() for row in rows]


def _is_list_of_prompts(prompt: Any) -> bool:
    """Return True for a list of texts or conversations; a conversation itself is a list of mappings."""
    return not isinstance(prompt, str) and not any(isinstance(one, Mapping) for one in prompt)


def generate_batch(
    loaded: LoadedModel, rows: Iterable[Any], *, ordered: bool = True, **settings: Any
) -> Iterator[answers.RowAnswer]:
    """Yield the answers to many prompts. Settings are those of `stream`; rows may have their own.

    Args:
        loaded: The model.
        rows: Each a text, a list of messages, or a mapping with `prompt` or `messages` and optionally `images`, `id`,
            `seed`, `system`, `generation` and `structure`. A few hundred are read ahead; the iterable may be endless.
        ordered: Yield in the order of the rows rather than as answers finish.
        settings: Settings of all rows.
    """
    return answers.generate_batch(_with_settings(loaded, settings), rows, ordered=ordered)


def generate_object(
    loaded: LoadedModel, prompt: str | Messages, shape: type[T], *, images: Sequence[ImageSource] = (), **settings: Any
) -> T:
    """Return one answer as an object: `generate_object(loaded, "Who was Ada?", Person)`.

    Images and settings are those of `stream`; arguments and errors those of `llmctl.generation.structured.objects`.
    """
    return objects.generate_object(_with_settings(loaded, settings), with_images(prompt, images), shape)


score, rank = scoring.score, scoring.rank


def _setting(name: str, known: Collection[str]) -> str:
    """Return the key of a setting, given its name or the name that other tools have for it.

    Raises:
        UserError: there is no such setting, or it is none of a single call.
    """
    if name in known:
        return name
    if synonym := find_synonym(name):
        section, _, leaf = synonym.key.rpartition(".")
        if leaf in known and section in ("", *_SECTIONS) and synonym.value is None:
            return leaf
        raise UserError(
            f"{name} is no setting of a call",
            hint=synonym.advice or f"llmctl.load takes it with the model: {synonym.instead()}",
        )
    close = difflib.get_close_matches(name, known, n=1)
    raise UserError(f"there is no setting {name}" + (f"; did you mean {close[0]}?" if close else ""))


def _with_settings(loaded: LoadedT, settings: Mapping[str, Any]) -> LoadedT:
    """Return the model with the settings of one call.

    Raises:
        UserError: an unknown setting, or a value that the schema refuses.
    """
    if loaded.model is None:
        raise UserError("the model is closed", hint="llmctl.load loads it again")
    known = {key: name for name in _SECTIONS for key in sections()[name].model_fields}
    values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    seed = None
    for name, value in settings.items():
        key = _setting(name, (*known, "seed"))
        if key != name and key in settings:
            raise UserError(f"{name} means {key}, which is given as well", hint=f"omit {name}")
        if key == "seed":
            seed = value
        else:
            is_one_stop = key == "stop_strings" and isinstance(value, str)
            values[known[key]][key] = [value] if is_one_stop else value
    if not settings:
        return loaded
    return with_generation(
        loaded,
        values["generation"],
        structure=values["structure"] or None,
        chat=values["chat"] or None,
        seed=seed,
        where="argument",
    )
