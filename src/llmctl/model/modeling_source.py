"""The source of transformers' classes, read without importing them."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmctl.transformers_compat import TIED_WEIGHTS


@cache
def transformers_file(path: str) -> str:
    """Return the content of a file of transformers; empty if there is none."""
    specification = find_spec("transformers")
    folders = specification.submodule_search_locations if specification is not None else None
    files = (Path(folder) / path for folder in folders or ())
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")


def modeling_source(model_type: str) -> str:
    """Return the source of the classes of a model type; empty if there is none by that name."""
    for name in (re.sub(r"\W", r"_", model_type), model_type.removesuffix("_text")):
        source = transformers_file(f"models/{name}/modeling_{name}.py") if name.isidentifier() else ""
        if source:
            return source
    return ""


def never_ties_head(source: str, architecture: str) -> bool:
    """Return True if a class has an output head, and no rule that ties it to the embedding whatever config.json says.

    Args:
        source: The source of the class's module.
        architecture: The name of the class.
    """
    found = re.search(rf"^class {re.escape(architecture)}\((.*)\):\n((?:(?!class ).*\n)*)", source, re.MULTILINE)
    if found is None or not re.search(r"self\.\w+ = nn\.Linear\(", found[2]):
        return False
    if re.search(rf"{TIED_WEIGHTS} = (?!\{{\}}|None)", found[2]):
        return False
    bases = [base for base in re.findall(r"\w+", found[1]) if re.search(rf"^class {base}\b", source, re.MULTILINE)]
    return not any(TIED_WEIGHTS in source.partition(f"class {base}(")[2].partition("\nclass ")[0] for base in bases)
