"""The choice of the attention implementation.

FlashAttention-2 computes only in float16 and bfloat16, needs CUDA of compute capability 8.0 or more
(https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support) and a head of at most 256 values, and cannot
mask padding inside a row: batches for it are packed, never padded. It works with 8- and 4-bit weights.
"""

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision

FLASH_CAPABILITY = (8, 0)
FLASH_DTYPES = ("float16", "bfloat16")
FLASH_HEAD_DIM = 256


def decide_attention(
    config: Config, machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], dtype: str
) -> Decision:
    """Choose the attention implementation.

    Raises:
        UserError: FlashAttention-2 is requested with a dtype, a device map or a model that it does not support.
        MachineError: FlashAttention-2 is requested and this machine does not meet its requirements.
    """
    requested = config.load.attn_implementation
    obstacles = _flash_obstacles(machine, info, devices=devices, dtype=dtype)
    if requested == "flash_attention_2":
        if obstacles:
            raise _combined_error(obstacles)
        return Decision("attn_implementation", requested, "asked for, and every condition holds")
    if requested != "auto":
        return Decision("attn_implementation", requested, "asked for")
    if not obstacles:
        package = "given the package flash-attn" if machine.is_hypothetical else "flash_attn is installed"
        reason = f"{package}, the GPU is new enough, {dtype}"
        return Decision("attn_implementation", "flash_attention_2", reason)
    return Decision("attn_implementation", "sdpa", f"flash_attention_2 {obstacles[0].message}")


def _flash_obstacles(machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], dtype: str) -> list[LlmctlError]:
    """Return the unmet conditions of FlashAttention-2, the user's choices first. Each message continues a sentence."""
    obstacles = _model_obstacles(info, dtype=dtype)
    cuda = [gpu for gpu in machine.gpus if gpu.kind == "cuda"]
    if not cuda:
        obstacles.append(
            MachineError(f"needs an NVIDIA GPU of compute capability 8.0 or more, {_no_gpu(machine)}", hint=_SDPA)
        )
    for gpu in cuda:
        if gpu.device in devices and gpu.capability < FLASH_CAPABILITY:
            major, minor = gpu.capability
            obstacles.append(
                MachineError(f"needs compute capability 8.0 or more, {gpu.name} has {major}.{minor}", hint=_SDPA)
            )
    elsewhere = [device for device in devices if not device.startswith("cuda")]
    if cuda and elsewhere:
        where = ", ".join(elsewhere)
        obstacles.append(
            UserError(f"needs every part of the model on a GPU, and part of it is on {where}", hint=_SMALLER)
        )
    if "flash_attn" not in machine.packages:
        obstacles.append(
            MachineError(
                "needs the package flash-attn, which is not installed",
                hint="pip install --no-build-isolation flash-attn   (or use --attn sdpa)",
            )
        )
    return obstacles


def _model_obstacles(info: ModelInfo, *, dtype: str) -> list[LlmctlError]:
    obstacles: list[LlmctlError] = []
    if dtype not in FLASH_DTYPES:
        obstacles.append(
            UserError(
                f"computes only in float16 or bfloat16, not in {dtype}",
                hint="use --dtype bf16 or --dtype fp16, or --attn sdpa",
            )
        )
    if (info.head_dim or 0) > FLASH_HEAD_DIM:
        obstacles.append(
            UserError(
                f"supports heads of at most {FLASH_HEAD_DIM}, this model has {info.head_dim}",
                hint="use --attn sdpa",
            )
        )
    return obstacles


_SDPA = "use --attn sdpa, which runs everywhere"
_SMALLER = "use --attn sdpa or a smaller model"


def _no_gpu(machine: Machine) -> str:
    if machine.idle_gpus:
        return f"torch {machine.packages.get('torch', '')} cannot use the {machine.idle_gpus[0].name} of this machine"
    return "this machine has none"


def _combined_error(obstacles: list[LlmctlError]) -> LlmctlError:
    """Return one error for all unmet conditions; the first one decides its kind."""
    message = "flash_attention_2 " + "; it also ".join(error.message for error in obstacles)
    hints = list(dict.fromkeys(error.hint for error in obstacles if error.hint))
    return type(obstacles[0])(message, hint=hints[0], details={"missing": [error.message for error in obstacles]})
