"""The architecture: which module may import which, and what only one module may know."""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import llmctl

PACKAGE = Path(llmctl.__file__).parent
# A package, or one module of it, and its layer. A module imports modules of its own layer and of those below.
LAYERS = {
    "errors": 0,
    "_version": 0,
    "synonyms": 0,
    "units": 0,
    "versions": 0,
    "platform_support": 0,
    "paths": 1,
    "text_files": 1,
    "yaml_reader": 1,
    "transformers_compat": 1,
    "rope": 1,
    "cpu": 2,
    "quant": 2,
    "machine": 2,
    "config": 3,
    "model": 3,
    "hub": 4,
    "plan": 5,
    "model.resolve": 4,
    "loading": 7,
    "gpu": 7,
    "reproduce": 8,
    "generation": 9,
    "doctor": 9,
    "reproduce.recordings": 10,
    "reproduce.replay": 10,
    "reproduce.script": 10,
    "api": 10,
    "bench": 10,
    "server": 10,
    "vllm": 10,
    "": 11,  # llmctl itself, which resolves the public names
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
    "PIL",
}
# They define classes of torch and transformers, and are themselves imported inside functions only.
IMPORTED_LATE = {
    "llmctl.cpu.layers",
    "llmctl.cpu.expert_layers",
    "llmctl.cpu.expert_stacks",
    "llmctl.cpu.mxfp4",
    "llmctl.quant.torch_packed_weight",
    "llmctl.quant.hf_quantizer",
    "llmctl.quant.mxfp4_quantizer",
    "llmctl.quant.packed_modules",
}
COMPAT = "llmctl.transformers_compat"


@functools.cache
def modules() -> Mapping[str, ast.Module]:
    """Return the syntax tree of every module of llmctl by its dotted name."""
    trees = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["llmctl", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    return trees


def package_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def layer_of(module: str) -> int:
    """Return the layer of the longest entry that the module's name begins with."""
    parts = module.split(".")[1:]
    entries = (".".join(parts[:end]) for end in range(len(parts), -1, -1))
    return next(LAYERS[entry] for entry in entries if entry in LAYERS)


def statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Yield every node below this one that runs, so nothing under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, inside_functions=inside_functions)


@functools.cache
def imports(module: str, *, inside_functions: bool = True) -> frozenset[str]:
    """Return the dotted names of the modules that a module imports."""
    names = set()
    for node in statements(modules()[module], inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in modules() else str(node.module) for name in whole)
    return frozenset(names)


def cycles() -> list[frozenset[str]]:
    """Return the strongly connected groups of modules (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    groups = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        path.append(module)
        for imported in sorted(imports(module) & modules().keys() - {module}):
            if imported not in index:
                visit(imported)
            if imported in path:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == index[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                groups.append(frozenset(group))

    for module in modules():
        if module not in index:
            visit(module)
    return groups


def test_a_module_imports_only_its_own_layer_and_those_below() -> None:
    upward = [
        f"{module} imports {imported}"
        for module in modules()
        for imported in sorted(imports(module))
        if imported.startswith("llmctl.") and layer_of(imported) > layer_of(module)
    ]
    assert upward == []


def test_imports_form_no_cycle_even_inside_functions() -> None:
    assert [sorted(cycle) for cycle in cycles()] == []


def test_only_the_command_line_imports_typer_and_only_render_imports_rich() -> None:
    offenders = []
    for module in modules():
        allowed = TERMINAL if module == "llmctl.cli._render" else {"typer"} if package_of(module) == "cli" else set()
        used = {name.split(".")[0] for name in imports(module)} & TERMINAL
        offenders += [f"{module} imports {name}" for name in sorted(used - allowed)]
    assert offenders == []


def test_heavy_packages_are_imported_inside_functions() -> None:
    offenders = []
    for module in modules().keys() - IMPORTED_LATE:
        names = imports(module, inside_functions=False)
        offenders += [f"{module} imports {name}" for name in sorted(names & IMPORTED_LATE)]
        offenders += [f"{module} imports {name}" for name in sorted(names) if name.split(".")[0] in HEAVY]
    assert offenders == []


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


def test_only_platform_support_uses_what_some_systems_lack() -> None:
    offenders = []
    for module, tree in modules().items():
        if module in SYSTEM_MODULES:
            continue
        used = {name for name in imports(module) if name.split(".")[0] in SOME_SYSTEMS_MODULES}
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in SOME_SYSTEMS_NAMES.get(owner, ()):
                    used.add(f"{owner}.{name}")
        offenders += [f"{module} uses {name}" for name in sorted(used)]
    assert offenders == []


def test_the_core_never_prints() -> None:
    offenders = [
        f"{module}:{node.lineno}: {ast.unparse(node)}"
        for module, tree in modules().items()
        if package_of(module) != "cli"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert offenders == []


def _private_names(module: str) -> set[str]:
    """Return the private attributes that a module reads or sets, by a dot or by getattr and vars."""
    names: set[str] = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_only_one_module_knows_private_names_of_transformers() -> None:
    known = _private_names(COMPAT) | {"_model_mapping", "_keep_in_fp32_modules_strict", "_tied_weights_keys"}
    assert "_prepare_generation_config" in known
    offenders = [f"{m} uses {name}" for m in modules() if m != COMPAT for name in sorted(_private_names(m) & known)]
    assert offenders == []
