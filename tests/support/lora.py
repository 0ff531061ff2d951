"""LoRA adapters made by peft itself, with weights large enough to change the text."""

from pathlib import Path
from typing import Any


def write_adapter(folder: Path, base: Path, *, seed: int = 1, **changes: Any) -> Path:
    """An adapter for the model in `base`. `changes` go into its LoraConfig."""
    from llmctl.quant.registry import import_packages

    import_packages()  # before peft does, which would let it look for code to fetch
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **changes}
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name and weight.dim() > 1:
            torch.nn.init.normal_(weight, 0, 0.2)
    adapted.save_pretrained(str(folder))
    return folder
