"""Loading of the compiled library."""

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import takewhile
from pathlib import Path

from llmctl.cpu.operations import Kernels
from llmctl.cpu.structs import Operation, Pass

DISTRIBUTION = "llmctl-hf"
LIBRARY_VARIABLE = "LLMCTL_KERNELS_LIBRARY"
ISA_VARIABLE = "LLMCTL_KERNELS_ISA"
_NAME = "llmctl_kernels.dll" if sys.platform == "win32" else "llmctl_kernels.so"
_VERSION = 13  # llmctl_version() in native/api.cpp


class _Unusable(Exception):  # noqa: N818 (it never leaves this module)
    """The library cannot be used; the message is the reason, in one sentence."""


def load() -> Kernels | None:
    """Return the kernels, or None if they were not built or cannot run here; `missing` gives the reason.

    LLMCTL_KERNELS_ISA=NAME forces an instruction set, LLMCTL_KERNELS_LIBRARY=PATH another library.
    """
    return _library()[0]


def missing() -> str | None:
    """Return the reason why `load` returns None, as one sentence, or None if it returns kernels."""
    return _library()[1]


def build_key() -> str:
    """Return the version of the library's interface and the time of its compilation, which change with its speed."""
    return f"{_VERSION} {int(_path().stat().st_mtime)}"


@cache
def _library() -> tuple[Kernels | None, str | None]:
    try:
        library = _opened(_path())
        wanted = os.environ.get(ISA_VARIABLE, "")
        isa = library.llmctl_select(wanted.encode())
        if isa is None:
            raise _Unusable(f"{ISA_VARIABLE}={wanted} is not one of {', '.join(_usable(library))}")
        return Kernels(library, isa.decode(), _usable(library)), None
    except _Unusable as error:
        return None, str(error)


def _path() -> Path:
    """Return the path from the environment variable, or the library beside this file, or that of the installed package.

    The last is for editable installations, and for a checkout run by the Python of another installation.
    """
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        return Path(chosen)
    beside = Path(__file__).with_name(_NAME)
    if beside.is_file():
        return beside
    try:
        installed = Path(str(distribution(DISTRIBUTION).locate_file(f"llmctl/cpu/{_NAME}")))
    except PackageNotFoundError:
        raise _Unusable("llmctl is not installed as a package, so nothing was compiled") from None
    if installed.is_file():
        return installed
    raise _Unusable("they were not compiled when llmctl was installed: no C++ compiler was found, or it failed")


def _opened(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        version = library.llmctl_version()
    except (OSError, AttributeError) as error:
        raise _Unusable(f"{path} cannot be opened ({error})") from None
    if version != _VERSION:
        raise _Unusable(f"{path} was compiled from another version of llmctl")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for struct, size in ((Operation, library.llmctl_operation_size()), (Pass, library.llmctl_pass_size())):
        if size != ctypes.sizeof(struct):
            expected = ctypes.sizeof(struct)
            raise _Unusable(f"{path} has {size} bytes in struct {struct.__name__}, but cpu/structs.py has {expected}")
    return library


def _usable(library: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(name.decode() for name in takewhile(bool, map(library.llmctl_usable, range(100))))


_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "llmctl_operation_size": (_L, []),
    "llmctl_pass_size": (_L, []),
    "llmctl_select": (ctypes.c_char_p, [ctypes.c_char_p]),
    "llmctl_usable": (ctypes.c_char_p, [_I]),
    "llmctl_use_region": (None, [_P]),
    "llmctl_code4": (ctypes.POINTER(ctypes.c_int8), []),
    "llmctl_code_e2m1": (ctypes.POINTER(ctypes.c_int8), []),
    "llmctl_linear_quantized": (None, [_I, _I, _P, _I, _L, _L, _P, _P, _L, _P, _I, _P, _I, _I]),
    "llmctl_linear": (None, [_P, _I, _L, _L, _P, _I, _L, _P, _I, _P, _I, _I]),
    "llmctl_pack_mxfp4": (None, [_P, _P, _L, _L, _P, _P, _I]),
    "llmctl_quantize": (None, [_I, _P, _I, _L, _L, _P, _P, _I]),
    "llmctl_attention": (None, [_P, _I, _P, _P, _I, _P, _P, _P, _P, _P, _F, _F, _P, _P, _I]),
    "llmctl_rms_norm": (None, [_P, _I, _L, _L, _P, _I, _P, _I, _I, _F, _P, _I]),
    "llmctl_activation": (None, [_P, _P, _I, _L, _P, _I]),
    "llmctl_gated_activation": (None, [_P, _P, _I, _L, _L, _L, _I, _P, _I]),
    "llmctl_route": (None, [_P, _P, _I, _L, _P, _P, _I]),
    "llmctl_experts": (None, [_P, _P, _I, _L, _P, _P, _P, _I]),
    "llmctl_run_program": (None, [_P, _L, _P]),
}
