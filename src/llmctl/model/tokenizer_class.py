"""The class that transformers would make a tokenizer of, compared with tokenizer.json on a probe text.

The class is built from a small copy of the file, in which the vocabulary has only the tokens that can occur in the
probes. That takes a hundredth of a second, where building it from 150 000 tokens takes one to two seconds. The merges
of the copy are all possible ones in the order of their tokens; both sides of the comparison use the same.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llmctl.model.tokenizer_file import FILE, is_failure, read_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts that the pre-tokenizers and normalisers of different families split differently, by kind.
_PROBES = {
    "spaces and blank lines": "One  two\n\n\nthree \n\n    four\t\tfive  ",
    "digits": "1234567 in 2024, 3.14159 at 10:30",
    "code": "def f(x):\n        return x**2  # it's DON'T\nfooBar = {'a': [1]}; HTTPServer(\"/\");",
    "scripts": "Привет, мир! 你好，世界。 こんにちは مرحبا नमस्ते 한국어 e\u0301 \ufb01 🙂",
}
_SPECIAL_PROBE = "{0}user\n  Hello{0} {0}\n\nx"
_SPECIAL_TOKENS = 8  # enough to find one between texts
_LONGEST = 12  # characters of the longest token to look for
# The settings of each kind of model, besides its vocabulary.
_SETTINGS = {
    "BPE": (
        "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"
    ),
    "Unigram": (),
    "WordPiece": ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"),
    "WordLevel": ("unk_token",),
}  # fmt: skip


@dataclass(frozen=True)
class ClassTokenizer:
    """The tokenizer that transformers would make with a class.

    Attributes:
        name: Name of the class; None if transformers uses the file as it is.
        differences: Kinds of text that it splits differently from tokenizer.json.
        obstacle: The reason why it cannot be used, or None.
        special_tokens: Its special tokens by name, defaults included.
    """

    name: str | None = None
    differences: tuple[str, ...] = ()
    obstacle: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def compare_class(folder: Path, backend: "Tokenizer") -> ClassTokenizer:
    """Compare tokenizer.json with the tokenizer that transformers' AutoTokenizer would make of it.

    Args:
        backend: The content of tokenizer.json.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = dict(read_settings(folder))
    settings.pop("added_tokens_decoder", None)
    name = str(settings.get("tokenizer_class"))
    name = name if settings.get("tokenizer_class") and name.isidentifier() else "the class of its model type"
    if settings.pop("auto_map", None):
        return ClassTokenizer(name, obstacle="it is Python code of the repository, which is not run")
    special = [one.content for one in backend.get_added_tokens_decoder().values() if one.special][:_SPECIAL_TOKENS]
    small = _small_file(backend, special)
    if small is None:
        return ClassTokenizer()
    try:
        with TemporaryDirectory(prefix="llmctl-") as copy:
            _write(Path(copy), folder, settings, small)
            try:
                loaded = AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
            except BaseException as error:
                if not is_failure(error):
                    raise
                return ClassTokenizer(name, obstacle="it cannot be made from this file")
    except OSError:  # there is no place for the copy; only the comparison is missing
        return ClassTokenizer()
    if type(loaded) is PreTrainedTokenizerFast:
        return ClassTokenizer()
    differences = tuple(_differences(Tokenizer.from_str(json.dumps(small)), loaded, special))
    tokens = {key: str(token) for key, token in loaded.special_tokens_map.items()}
    return ClassTokenizer(type(loaded).__name__, differences, special_tokens=tokens)


def _write(copy: Path, folder: Path, settings: Mapping[str, Any], small: Mapping[str, Any]) -> None:
    """Write the files from which transformers chooses and makes a tokenizer."""
    for name in ("config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (copy / FILE).write_text(json.dumps(small), encoding="utf-8")


def _differences(file: "Tokenizer", loaded: Any, special: Sequence[str]) -> Iterator[str]:
    """Yield the kinds of text that a class splits differently from the file."""
    probes = {kind: (text, False) for kind, text in _PROBES.items()}
    if special:
        probes["special tokens"] = (_SPECIAL_PROBE.format(special[-1]), False)
    probes["the beginning or end"] = ("x", True)
    for kind, (text, adds_special) in probes.items():
        try:
            tokens = loaded.tokenize(text, add_special_tokens=adds_special)
        except BaseException as error:
            if not is_failure(error):
                raise
            tokens = None
        if tokens != file.encode(text, add_special_tokens=adds_special).tokens:
            yield kind


def _small_file(backend: "Tokenizer", special: Sequence[str]) -> dict[str, Any] | None:
    """Return the content of a tokenizer.json with few tokens; None for an unknown kind of model."""
    found = {token: token_id for token in _candidates() if (token_id := backend.token_to_id(token)) is not None}
    tokens = list(dict.fromkeys([*special, *sorted(found, key=found.__getitem__)]))
    model = _small_model(backend.model, tokens, len(special))
    if model is None:
        return None
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(special)],
        "normalizer": _part(backend.normalizer),
        "pre_tokenizer": _part(backend.pre_tokenizer),
        "post_processor": _part(backend.post_processor),
        "decoder": _part(backend.decoder),
        "model": model,
    }


def _small_model(model: Any, tokens: Sequence[str], special: int) -> dict[str, Any] | None:
    """Return the description of a model with few tokens and otherwise the settings of `model`.

    Args:
        special: Number of tokens at the beginning that are special, and so have no merges.
    """
    kind = type(model).__name__
    if kind not in _SETTINGS:
        return None
    settings = {name: getattr(model, name) for name in _SETTINGS[kind]}
    unknown = settings.get("unk_token")
    vocabulary = {
        token: number for number, token in enumerate(dict.fromkeys([*tokens, *([unknown] if unknown else [])]))
    }
    if kind == "Unigram":
        return {"type": kind, "unk_id": 0, "vocab": [[token, -10.0 / len(token)] for token in vocabulary or ["?"]]}
    if kind == "BPE":
        pairs = [(t[:cut], t[cut:]) for t in tokens[special:] for cut in range(1, len(t))]
        settings["merges"] = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    return {"type": kind, **settings, "vocab": vocabulary}


def _candidates() -> Iterator[str]:
    """Yield the tokens that a tokenizer of any family can find in the probes, and those of single bytes."""
    letters = _byte_letters()
    yield from letters
    yield from (f"<0x{number:02X}>" for number in range(256))
    for text in _PROBES.values():
        spelled = (f"▁{text}".replace(" ", "▁"), "".join(letters[byte] for byte in f" {text}".encode()), text)
        for spelling in spelled:
            for start in range(len(spelling)):
                for end in range(start + 1, min(start + _LONGEST, len(spelling)) + 1):
                    yield spelling[start:end]
                    yield f"##{spelling[start:end]}"


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte.

    Printable bytes stand for themselves, and the others follow from U+0100 (GPT-2's encoder.py).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _part(part: Any) -> Any:
    """Return the description of a part of a tokenizer, as it stands in tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())
