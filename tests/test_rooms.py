"""Who may import whom: from the command line down to the errors, never upwards."""

import ast
from pathlib import Path

import pytest

import llmctl

PACKAGE = Path(llmctl.__file__).parent
# room -> its floor; a module may import rooms on its own floor or below
FLOORS = {
    "errors": 0,
    "_version": 0,
    "paths": 1,
    "quiet": 1,
    "imports": 1,
    "bounded": 1,
    "state": 2,
    "checkpoint": 2,
    "machine": 2,
    "kernels": 2,
    "modelinfo": 3,
    "config": 3,
    "memory": 4,
    "presets": 4,
    "adapters": 5,
    "plan": 5,
    "quantization": 5,
    "hub": 6,
    "demo": 6,
    "locate": 7,
    "tokenization": 7,
    "hashes": 7,
    "look": 8,
    "manifest": 8,
    "compiled": 6,
    "loader": 8,
    "generation": 9,
    "doctor": 9,
    "export": 9,
    "replay": 10,
    "serving": 10,
    "bench": 10,
    "script": 10,
    "api": 10,
    "": 11,  # llmctl itself: resolves the public names
    "cli": 12,
    "__main__": 13,
}
TERMINAL = {"typer", "rich", "click"}
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "huggingface_hub",
    "httpx2",
    "safetensors",
    "tokenizers",
    "peft",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    first = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(module: Path, *, top_level_only: bool = False) -> set[str]:
    """The dotted names that a module imports, those under `if TYPE_CHECKING` left out."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
            elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                for inner in ast.iter_child_nodes(node):
                    if isinstance(inner, ast.stmt):
                        visit([inner])
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(tree.body)
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_below_its_own(module: Path) -> None:
    own = FLOORS[room_of(module)]
    for name in imports(module):
        if name == "llmctl" or not name.startswith("llmctl."):
            continue
        room = name.split(".")[1]
        assert room in FLOORS, f"{room} has no floor yet: add it to FLOORS"
        assert FLOORS[room] <= own, f"{module.relative_to(PACKAGE)} imports {name}, which lies above it"


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_only_the_command_line_knows_typer_and_only_render_knows_rich(module: Path) -> None:
    used = {name.split(".")[0] for name in imports(module)} & TERMINAL
    if room_of(module) != "cli":
        assert used == set()
    elif module.name != "render.py":
        assert used <= {"typer"}


# They define classes of torch and transformers, and are themselves imported inside functions only.
WORKING = {"llmctl.quantization.layers", "llmctl.quantization.by_torch", "llmctl.quantization.quantizer"}


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(module: Path) -> None:
    if ".".join(["llmctl", *module.relative_to(PACKAGE).with_suffix("").parts]) in WORKING:
        return
    assert imports(module, top_level_only=True) & WORKING == set()
    assert {name.split(".")[0] for name in imports(module, top_level_only=True)} & HEAVY == set()


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_the_core_never_prints(module: Path) -> None:
    if room_of(module) == "cli":
        return
    calls = [n for n in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert [ast.unparse(c) for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"] == []
