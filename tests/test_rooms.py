"""Who may import whom: from the command line down to the errors, never upwards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmctl

PACKAGE = Path(llmctl.__file__).parent
# a room, or one module of it -> its floor; a module may import what is on its own floor or below
FLOORS = {
    "errors": 0,
    "_version": 0,
    "units": 0,
    "platform_support": 0,
    "paths": 1,
    "loading.transformers_compat": 1,
    "loading.quiet": 1,
    "loading.mapped_files": 1,
    "cpu": 2,
    "machine": 2,
    "config": 3,
    "model": 3,
    "hub": 4,
    "plan": 5,
    "machine.presets": 5,
    "cpu.layers": 5,
    "cpu.program": 6,
    "model.demo": 5,
    "model.resolve": 6,
    "model.inspect": 6,
    "quant": 6,
    "loading": 7,
    "quant.export": 8,
    "reproduce": 8,
    "generation": 9,
    "doctor": 9,
    "reproduce.replay": 10,
    "reproduce.script": 10,
    "api": 10,
    "bench": 10,
    "server": 10,
    "vllm": 10,
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


def floor_of(dotted: str) -> int:
    """The floor of `loading.loader`: that of the longest entry that it begins with."""
    parts = dotted.split(".")
    ends = range(len(parts), 0, -1)
    return next(FLOORS[name] for end in ends if (name := ".".join(parts[:end])) in FLOORS)


def _imported(package: str, name: str) -> str:
    """The module that `from package import name` brings."""
    path = PACKAGE.joinpath(*package.split(".")[1:], name)
    is_module = package.startswith("llmctl") and (path.is_dir() or path.with_suffix(".py").is_file())
    return f"{package}.{name}" if is_module else package


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
                found.update(_imported(node.module, alias.name) for alias in node.names)
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
    own = floor_of(".".join(module.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."))
    for name in imports(module):
        if name == "llmctl" or not name.startswith("llmctl."):
            continue
        assert floor_of(name.removeprefix("llmctl.")) <= own, f"{name} lies above {module.relative_to(PACKAGE)}"


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_only_the_command_line_knows_typer_and_only_render_knows_rich(module: Path) -> None:
    used = {name.split(".")[0] for name in imports(module)} & TERMINAL
    if room_of(module) != "cli":
        assert used == set()
    elif module.name != "_render.py":
        assert used <= {"typer"}


# They define classes of torch and transformers, and are themselves imported inside functions only.
WORKING = {"llmctl.cpu.layers", "llmctl.quant.torch_packed", "llmctl.quant.hf_quantizer"}


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(module: Path) -> None:
    if ".".join(["llmctl", *module.relative_to(PACKAGE).with_suffix("").parts]) in WORKING:
        return
    assert imports(module, top_level_only=True) & WORKING == set()
    assert {name.split(".")[0] for name in imports(module, top_level_only=True)} & HEAVY == set()


# Modules and functions that some systems do not have, and paths of Linux.
SOME_SYSTEMS_MODULES = {"resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "select", "msvcrt", "_winapi"}
SOME_SYSTEMS_NAMES = {
    "os": {
        *("fork", "forkpty", "killpg", "setsid", "getpgid", "getuid", "geteuid", "getgid", "waitpid", "waitid", "wait"),
        *("sched_getaffinity", "sysconf", "getloadavg", "pread", "pwrite", "uname", "O_CLOEXEC", "O_BINARY"),
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGCHLD", "SIGALRM", "SIGUSR1", "alarm", "setitimer", "pthread_sigmask"},
}
# The supervisor of vLLM is a script for Linux and macOS that uses the standard library alone.
SYSTEM_MODULES = {"llmctl.platform_support", "llmctl.vllm.supervisor"}


def _parts_of_some_systems(module: Path) -> Iterator[str]:
    yield from {name.split(".")[0] for name in imports(module)} & SOME_SYSTEMS_MODULES
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in SOME_SYSTEMS_NAMES.get(owner, ()):
                yield f"{owner}.{name}"


def test_only_platform_support_uses_what_some_systems_lack() -> None:
    used = {
        f"{dotted}: {name}"
        for module in modules()
        if (dotted := ".".join(["llmctl", *module.relative_to(PACKAGE).with_suffix("").parts])) not in SYSTEM_MODULES
        for name in _parts_of_some_systems(module)
    }
    assert used == set()


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_the_core_never_prints(module: Path) -> None:
    if room_of(module) == "cli":
        return
    calls = [n for n in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert [ast.unparse(c) for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"] == []


COMPAT = PACKAGE / "loading" / "transformers_compat.py"


def _private_names(module: Path) -> set[str]:
    """The private attributes that a module reads or sets, by a dot or by getattr and vars."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_only_one_module_knows_private_names_of_transformers() -> None:
    known = _private_names(COMPAT) | {"_model_mapping", "_keep_in_fp32_modules_strict", "_tied_weights_keys"}
    assert "_prepare_generation_config" in known
    others = {str(m.relative_to(PACKAGE)): _private_names(m) & known for m in modules() if m != COMPAT}
    assert {name: found for name, found in others.items() if found} == {}
