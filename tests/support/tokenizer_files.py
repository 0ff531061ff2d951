"""Small tokenizer.json files with the normalisers and pre-tokenizers of real families."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
# blank lines, digits, code, several scripts, and added tokens between texts
PROBE = (
    "One  two\n\n\n 1234567 in 2024\n\tdef f(x):\n        return x**2  # it's DON'T\n\n<|start|>user\n Привет 你好，"
    "世界 नमस्ते مرحبا e\u0301 🙂<|end|> \n\n</s> x"
)
_TEXTS = [
    "once upon a time there was a small model in 2024 that read 1234567 books.\n\n\nIt's DON'T and foo's\n",
    "def f(x):\n        return x**2  # it's\n\n    for key in values:\n\tprint(key, 3.14)\n",
    "Привет, мир! 你好，世界 नमस्ते مرحبا é",
]
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN = _LETTERS % "{1,3}" + _REST, _LETTERS % "" + _REST


def _byte_level(
    *, pattern: str | None = None, digits: bool = False, normalizer: Any = None, **model: Any
) -> "Tokenizer":
    """Return a byte-level tokenizer: with a pattern of its own, or the one of GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder, tokenizer.normalizer = decoders.ByteLevel(), normalizer
    return _changed(_trained(tokenizer, alphabet=pre_tokenizers.ByteLevel.alphabet()), **model)


def _sentencepiece(*, normalizer: Any, pre_tokenizer: Any) -> "Tokenizer":
    """Return a tokenizer that writes ▁ for a space, and the bytes of characters that it does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = _trained(tokenizer, special=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def _trained(tokenizer: "Tokenizer", *, alphabet: Any = (), special: Any = SPECIAL) -> "Tokenizer":
    from tokenizers import Tokenizer, processors, trainers

    kinds = {"BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer, "WordPiece": trainers.WordPieceTrainer}
    kind = type(tokenizer.model).__name__
    arguments: dict[str, Any] = {"unk_token": "<unk>"} if kind == "Unigram" else {}
    trainer = kinds[kind](
        vocab_size=600, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False, **arguments
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return tokenizer


def _changed(tokenizer: "Tokenizer", **model: Any) -> "Tokenizer":
    """Return a tokenizer with changed settings of its model."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    content["model"] |= model
    return Tokenizer.from_str(json.dumps(content))


def _unigram() -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer)


def _word_piece() -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer)


def _llama2() -> "Tokenizer":
    from tokenizers import normalizers

    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(normalizer=spaces, pre_tokenizer=None)


def _mistral() -> "Tokenizer":
    from tokenizers import pre_tokenizers

    return _sentencepiece(normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def _gemma() -> "Tokenizer":
    from tokenizers import normalizers, pre_tokenizers

    words = pre_tokenizers.Split(" ", "merged_with_previous")
    return _sentencepiece(normalizer=normalizers.Replace(" ", "▁"), pre_tokenizer=words)


def _qwen() -> "Tokenizer":
    from tokenizers import normalizers

    return _byte_level(pattern=QWEN, normalizer=normalizers.NFC())


FAMILIES: Mapping[str, Callable[[], "Tokenizer"]] = {
    "gpt2": functools.cache(_byte_level),
    "smollm": functools.cache(lambda: _byte_level(digits=True)),
    "llama3": functools.cache(lambda: _byte_level(pattern=LLAMA3, ignore_merges=True)),
    "qwen": functools.cache(_qwen),
    "llama2": functools.cache(_llama2),
    "mistral": functools.cache(_mistral),
    "gemma": functools.cache(_gemma),
    "t5": functools.cache(_unigram),
    "bert": functools.cache(_word_piece),
}


def write_files(folder: Path, family: str, tokenizer_class: str, **settings: Any) -> "Tokenizer":
    """Write a family's tokenizer.json with a tokenizer_config.json that names a class. Return the file's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = FAMILIES[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    content = {"tokenizer_class": tokenizer_class, **{k: v for k, v in content.items() if v is not None}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return tokenizer
