"""The script of `--show-code` loads the tokenizer as llmctl does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.config import settings_from_mapping
from llmctl.loading.model import load_prompt_model
from llmctl.loading.prepare import prepare
from llmctl.model.mistral_pattern import WRONG
from llmctl.reproduce.script import transformers_script
from support.tiny import edit_json
from support.tokenizer_files import PROBE


@pytest.mark.parametrize(
    ("section", "tokenizer_class"),
    [({}, "GPT2Tokenizer"), ({"source": "class"}, "GPT2Tokenizer"), ({"fix_mistral_regex": True}, "GemmaTokenizer")],
)
def test_the_script_gives_the_same_token_ids(
    section: dict[str, Any], tokenizer_class: str, tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_models("mistral"), tmp_path / "model"))
    edit_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class, add_bos_token=True)
    letters = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"] | {
        "use_regex": False
    }
    split = {"type": "Split", "pattern": {"Regex": WRONG}, "behavior": "Isolated", "invert": False}
    edit_json(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, letters]})
    prepared = prepare(settings_from_mapping({"model": {"id": str(folder)}, "tokenizer": section}))
    lines = transformers_script(prepared).partition("model = ")[0]
    names: dict[str, Any] = {}
    exec(lines, names)
    ours = load_prompt_model(prepared).tokenizer
    assert names["tokenizer"](PROBE)["input_ids"] == ours(PROBE)["input_ids"]
    assert (names["tokenizer"].pad_token_id, names["tokenizer"].padding_side) == (ours.pad_token_id, "left")
