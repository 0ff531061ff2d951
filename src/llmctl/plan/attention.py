"""The choice of the attention implementation.

FlashAttention-2 computes only in float16 and bfloat16, needs CUDA of compute capability 8.0 or more or an AMD GPU
(https://github.com/Dao-AILab/flash-attention#installation-and-features) and a head of at most 256 values, and cannot
mask padding inside a row: batches for it are packed, never padded. It works with 8- and 4-bit weights.
"""

from llmctl.config import Config
from llmctl.errors import LlmctlError, MachineError, UserError
from llmctl.machine.detection import Machine
from llmctl.model.info import ModelInfo
from llmctl.plan.decision import Decision
from llmctl.plan.gpus import fuses_grouped_attention, gpus_on, is_before_ampere, number

FLASH_DTYPES = ("float16", "bfloat16")
FLASH_HEAD_DIM = 256
_FLASH_KINDS = ("cuda", "rocm")
_SDPA = "use --attn sdpa, which runs everywhere"
_SMALLER = "use --attn sdpa or a smaller model"


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
    repeated = _why_repeated(machine, info, devices) if requested in ("auto", "sdpa") else ""
    if requested != "auto":
        return Decision("attn_implementation", requested, "asked for" + repeated)
    if not obstacles:
        package = "given the package flash-attn" if machine.is_hypothetical else "flash_attn is installed"
        reason = f"{package}, the GPU is new enough, {dtype}"
        return Decision("attn_implementation", "flash_attention_2", reason)
    reason = f"flash_attention_2 {obstacles[0].message}"
    if info.supports_attention("sdpa") is False:
        reason += f"; transformers has no SDPA for {info.model_type}"
        return Decision("attn_implementation", "eager", reason)
    return Decision("attn_implementation", "sdpa", reason + repeated)


def _why_repeated(machine: Machine, info: ModelInfo, devices: tuple[str, ...]) -> str:
    """Return an addition to the reason if SDPA gets keys and values repeated for the query heads that share them.

    So it does where no fused kernel takes fewer heads of keys than of queries: torch would store the scores of every
    token with every token of a prompt, 4 GB for one layer of an 8B model with 8k tokens.
    """
    text = info.text_config
    heads, key_heads = text.get("num_attention_heads"), text.get("num_key_value_heads")
    is_grouped = isinstance(key_heads, int) and key_heads != heads
    if not is_grouped or all(map(fuses_grouped_attention, gpus_on(machine, devices))):
        return ""
    return "; keys and values are repeated, since no fused kernel for this GPU takes shared ones"


def _flash_obstacles(machine: Machine, info: ModelInfo, *, devices: tuple[str, ...], dtype: str) -> list[LlmctlError]:
    """Return the unmet conditions of FlashAttention-2, the user's choices first. Each message continues a sentence."""
    obstacles = _model_obstacles(info, dtype=dtype)
    cards = [gpu for gpu in machine.gpus if gpu.kind in _FLASH_KINDS]
    if not cards:
        obstacles.append(
            MachineError(f"needs an NVIDIA GPU of compute capability 8.0 or more, {_no_gpu(machine)}", hint=_SDPA)
        )
    for gpu in gpus_on(machine, devices):
        if is_before_ampere(gpu):
            obstacles.append(
                MachineError(f"needs compute capability 8.0 or more, {gpu.name} has {number(gpu)}", hint=_SDPA)
            )
    elsewhere = [device for device in devices if not device.startswith("cuda")]
    if cards and elsewhere:
        where = ", ".join(elsewhere)
        obstacles.append(
            UserError(f"needs every part of the model on a GPU, and part of it is on {where}", hint=_SMALLER)
        )
    if "flash_attn" not in machine.packages:
        obstacles.append(
            MachineError(
                "needs the package flash-attn, which is not installed, or not for this Python",
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
    if info.supports_attention("flash_attention_2") is False:
        obstacles.append(UserError(f"is not supported by transformers' {info.architecture}", hint="omit --attn"))
    return obstacles


def _no_gpu(machine: Machine) -> str:
    if machine.idle_gpus:
        return f"torch {machine.packages.get('torch', '')} cannot use the {machine.idle_gpus[0].name} of this machine"
    return "this machine has none" if not machine.gpus else f"this machine has: {machine.gpus[0].name}"


def _combined_error(obstacles: list[LlmctlError]) -> LlmctlError:
    """Return one error for all unmet conditions; the first one decides its kind."""
    message = "flash_attention_2 " + "; it also ".join(error.message for error in obstacles)
    hints = list(dict.fromkeys(error.hint for error in obstacles if error.hint))
    return type(obstacles[0])(message, hint=hints[0], details={"missing": [error.message for error in obstacles]})
