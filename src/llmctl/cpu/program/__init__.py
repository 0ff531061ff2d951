"""A model of a known architecture, read once from its modules as one program of llmctl's kernels for CPUs.

`architectures.py` says what is known, `reader.py` reads a model, `modules.py` lets its modules round as the program
does. Every other model runs module by module.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from llmctl.cpu import kernels
from llmctl.cpu.program.architectures import KNOWN, Architecture
from llmctl.cpu.program.modules import gated_forward, norm_forward, router_forward
from llmctl.cpu.program.reader import Reader, UnexpectedError
from llmctl.cpu.program.writer import Program, ProgramWriter

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """The packed tokens of several sequences; `Program.run` says what each tensor is."""

    @property
    def input_ids(self) -> "Tensor": ...
    @property
    def position_ids(self) -> "Tensor": ...
    @property
    def slots(self) -> "Tensor": ...
    @property
    def query_start(self) -> "Tensor": ...
    @property
    def kv_length(self) -> "Tensor": ...
    @property
    def page_table(self) -> "Tensor": ...
    @property
    def last(self) -> "Tensor": ...


class Compiled:
    """A model's program, with what is left to do in Python for each pass.

    Attributes:
        program: Everything between the tokens and the logits.
    """

    def __init__(self, model: Any, program: Program, architecture: Architecture) -> None:
        self.program = program
        config = model.config
        self._rotary = model.model.rotary_emb
        self._types = sorted(set(config.layer_types)) if architecture.angles_by_type else None
        self._logits_scale = architecture.logits(config)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(self, layout: "Layout", pools: "list[tuple[Tensor, Tensor]]") -> "Tensor":
        """Logits float32 [sequences, vocabulary] after the last token of each sequence of a layout."""
        import torch

        with torch.inference_mode():
            logits = self.program.run(
                ids=layout.input_ids[0],
                slots=layout.slots,
                last=layout.last,
                page_table=layout.page_table,
                query_start=layout.query_start,
                kv_length=layout.kv_length,
                angles=self._angles(layout.position_ids),
                pools=pools,
            )
            if self._logits_scale != 1.0:
                logits = logits * self._logits_scale
            if self._softcap:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            return logits

    def _angles(self, position_ids: "Tensor") -> "list[tuple[Tensor, Tensor]]":
        import torch

        like = torch.empty(0, dtype=self.program.dtype)
        kinds = self._types or [None]
        turned = (self._rotary(like, position_ids, *([kind] if kind else [])) for kind in kinds)
        return [(cosines[0], sines[0]) for cosines, sines in turned]


_PROGRAMS: "WeakKeyDictionary[Any, Compiled]" = WeakKeyDictionary()


def compiled(model: Any) -> Compiled | None:
    """The program of a model that `compile_model` made one for, or None."""
    return _PROGRAMS.get(model)


def compile_model(model: Any) -> bool:
    """Make a program for a model on the CPU whose linear layers llmctl's kernels multiply; False where it is not known.

    Norms and gates of the modules are then computed by the program's operations too, so that a pass of modules (beams,
    drafts) rounds as the program does.
    """
    import torch

    architecture, found = KNOWN.get(type(model).__name__), kernels.load()
    if architecture is None or found is None or model.dtype not in (torch.bfloat16, torch.float32):
        return False
    if any(tensor.device.type != "cpu" for tensor in model.parameters()):
        return False
    reader = Reader(model, architecture, ProgramWriter(found, model.dtype))
    try:
        program = reader.program()
    except UnexpectedError:
        return False
    _PROGRAMS[model] = Compiled(model, program, architecture)
    for module, norm in reader.norms:
        module.forward = partial(norm_forward, module, norm.epsilon, norm.flavour)
    for module, activation in reader.gates:
        module.forward = partial(gated_forward, module, activation)
    for module, how in reader.routers:
        module.forward = partial(router_forward, module, how)
    return True
