"""The description of a model, read without loading it: config.json and the headers of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llmctl.errors import ModelError
from llmctl.model.attention_support import supports_attention
from llmctl.model.checkpoint import Tensor, dtype_bytes, read_json, read_tensors, weight_files
from llmctl.model.float32_weights import computes_only_in_float32, float32_weights, modules_not_quantised
from llmctl.model.generation_config import GenerationDefaults, read_generation_defaults
from llmctl.model.loaded_names import renamer
from llmctl.model.modeling_source import modeling_source, never_ties_head
from llmctl.model.tokenizer_file import processor_template
from llmctl.model.towers import split_towers, tower_bytes
from llmctl.quant.backend import Quantization
from llmctl.quant.checkpoint_formats import has_packed_weights
from llmctl.quant.direct_reads import weights_read_directly
from llmctl.quant.registry import stored_quantization

# The names of the context length in config.json: transformers' own, then those of GPT-2, MPT and DBRX, Kimi and
# Baichuan, BLOOM and ChatGLM, and others.
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "model_max_length",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "n_ctx",
)
# No real model comes near these limits; a config.json that exceeds them is broken, or made to hang its reader.
BOUNDS = {
    "num_hidden_layers": 2_000,
    "n_layer": 2_000,
    "hidden_size": 500_000,
    "n_embd": 500_000,
    "intermediate_size": 5_000_000,
    "num_attention_heads": 10_000,
    "n_head": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "vocab_size": 20_000_000,
    **dict.fromkeys(CONTEXT_KEYS, 1_000_000_000),
    "num_local_experts": 20_000,
    "num_experts": 20_000,
    "n_routed_experts": 20_000,
}
# Names of the input embedding in families that transformers knows.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
# Keys with the number of passes through the same blocks: Dory's n_recurrent_loops, HRM's H_cycles.
_PASSES = re.compile(r"(loops?|cycles|repeats|passes)$", re.IGNORECASE)
# Ends of the names of classes that do not continue a text.
_OTHER_HEADS = ("ForMaskedLM", "Classification", "QuestionAnswering", "ForCTC", "ForNextSentencePrediction")
# Types that do not continue a text, by the reason. The classes of the first ones demand pixel values.
_IMAGE_NEEDED = "a model that needs an image with every text"
_NOT_FOR_TEXT = {
    **dict.fromkeys(("blip", "blip-2", "instructblip", "instructblipvideo", "idefics"), _IMAGE_NEEDED),
    "blt": "a model of patches of bytes, for which transformers cannot make a cache",
    "evolla": "a model that needs a protein with every text",
    "pi0": "a model that controls robots",
    "shieldgemma2": "a model that classifies images",
    "diffusion_gemma": "a model that generates blocks of tokens by diffusion, not token by token",
}
_ENCODER_DECODERS = ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder")
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class ModelInfo:
    """A model, as its files describe it.

    Attributes:
        source: Hub id, or path of the folder, as the user wrote it.
        folder: Folder of the files, or None if they are not on this machine.
        commit: Commit on the Hub, or None for a plain folder.
        config: Content of config.json.
        generation: Generation settings in the model's files, checked.
        tensors: The tensors of the checkpoint that are loaded.
        has_chat_template: True if a chat template comes with the model.
        left_out: The tensors that are not loaded: towers of a composite model, which text does not need.
    """

    source: str
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    folder: Path | None = None
    commit: str | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    has_chat_template: bool = False
    left_out: tuple[Tensor, ...] = ()

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json about the language model, which multimodal models nest."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def architecture(self) -> str:
        """The class that the model was saved from."""
        names = self.config.get("architectures") or ["unknown"]
        return str(names[0])

    @property
    def layer_count(self) -> int:
        """The number of decoder blocks in config.json; 0 if it states none."""
        return int(self.text_config.get("num_hidden_layers") or self.text_config.get("n_layer") or 0)

    @property
    def context_length(self) -> int | None:
        """The maximum tokens that the model attends to, or None if config.json does not state it."""
        values = (self.text_config.get(key) for key in CONTEXT_KEYS)
        return next((value for value in values if isinstance(value, int) and value > 0), None)

    @property
    def embedding_rows(self) -> int | None:
        """The number of token ids that the model has an embedding for, or None if its files do not state it."""
        value = self.text_config.get("vocab_size")
        if isinstance(value, int) and value > 0:
            return value
        return next((tensor.shape[0] for tensor in self.tensors if tensor.name.endswith(_EMBEDDINGS)), None)

    @property
    def parameters(self) -> int:
        """The number of elements that are loaded; a packed weight counts as those that it holds, if that is known."""
        stored = self.stored_quantization
        if stored is None:
            return sum(tensor.numel for tensor in self.tensors)
        return sum(stored.backend.stored_parameters(tensor, stored) for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of weights on disk, towers included."""
        return sum(tensor.size_bytes for tensor in (*self.tensors, *self.left_out))

    @property
    def towers(self) -> Mapping[str, int]:
        """The bytes on disk of each tower that is not loaded, by its name in the checkpoint."""
        return tower_bytes(self.config, self.left_out)

    @property
    def takes_images(self) -> bool:
        """True if the model is composite and one of its towers is for images."""
        names = ("vision", "vq", "image_token")
        return bool(self.left_out) and any(key.startswith(names) for key in self.config)

    @property
    def stored_dtype(self) -> str:
        """torch's name of the dtype of most weights.

        For a quantised checkpoint it is the dtype in config.json or else half precision, since scales can outweigh the
        unquantised weights.
        """
        named = str(self.text_config.get("dtype") or self.config.get("dtype") or self.config.get("torch_dtype"))
        names = [name for name in dtype_bytes(self.tensors) if name in _TORCH_NAMES]
        if self.stored_quantization is None:
            return _TORCH_NAMES[names[0]] if names else "float32"
        if named in _TORCH_NAMES.values():
            return named
        return _TORCH_NAMES[next((name for name in names if name != "F32"), "BF16")]

    @cached_property
    def stored_quantization(self) -> Quantization | None:
        """The quantisation that the checkpoint is stored in, or None."""
        # mlx-lm has a key of its own
        keys = (self.config.get("quantization_config"), self.text_config.get("quantization_config"))
        stored = next((one for one in (*keys, self.config.get("quantization")) if isinstance(one, dict) and one), None)
        if stored is None and has_packed_weights(self.tensors):
            stored = {}  # config.json does not mention them
        return stored_quantization(stored)

    @property
    def model_types(self) -> tuple[str, ...]:
        """The model type, and that of the language model in it if it has another."""
        return tuple(dict.fromkeys((self.model_type, str(self.text_config.get("model_type", self.model_type)))))

    @cached_property
    def loaded_tensors(self) -> tuple[Tensor, ...]:
        """The tensors by the names of transformers' weights, which differ from those in some checkpoints."""
        rename = renamer((self.architecture, *self.model_types))
        return self.tensors if rename is None else tuple(replace(one, name=rename(one.name)) for one in self.tensors)

    @cached_property
    def has_tied_head(self) -> bool:
        """True if the output head shares the weights of the embedding."""
        has_head = any(tensor.name.endswith("lm_head.weight") for tensor in self.loaded_tensors)
        if has_head and any(never_ties_head(modeling_source(kind), self.architecture) for kind in self.model_types):
            return False
        named = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        return not has_head if named is None else bool(named)

    @cached_property
    def modules_not_quantised(self) -> tuple[str, ...]:
        """Ends of the names of modules that cannot be quantised: transformers says so, or reads their weights."""
        source = modeling_source(self.model_types[-1])
        return (*weights_read_directly(source, self.text_config), *modules_not_quantised(source))

    def stays_in_float32(self, name: str, *, dtype: str) -> bool:
        """Return True if a loaded weight is in float32 although the model has another dtype.

        Args:
            name: Its name in `loaded_tensors`.
            dtype: The model's dtype.
        """
        return any(pattern.search(name) for pattern in self._float32_patterns[dtype])

    @cached_property
    def computes_only_in_float32(self) -> bool:
        """True if transformers' classes of this model fail in half precision."""
        return any(computes_only_in_float32(modeling_source(kind)) for kind in self.model_types)

    def supports_attention(self, implementation: str) -> bool | None:
        """Return True if transformers' class supports `sdpa` or `flash_attention_2`; None if that is not known."""
        sources = (modeling_source(kind) for kind in self.model_types)
        found = (supports_attention(source, self.architecture, implementation) for source in sources)
        return next((one for one in found if one is not None), None)

    @cached_property
    def _float32_patterns(self) -> dict[str, list[re.Pattern[str]]]:
        sources = [modeling_source(kind) for kind in self.model_types]
        patterns = {
            name: [float32_weights(source, dtype=name) for source in sources] for name in ("float16", "bfloat16")
        }
        return {"float32": [], **{name: [one for one in several if one] for name, several in patterns.items()}}

    @property
    def has_remote_code(self) -> bool:
        """True if the repository contains Python code for the model."""
        return bool(self.config.get("auto_map"))

    @property
    def head_dim(self) -> int | None:
        """The width of an attention head, or None if config.json does not state it."""
        text = self.text_config
        if isinstance(text.get("head_dim"), int):
            return int(text["head_dim"])
        width = text.get("hidden_size") or text.get("n_embd")
        heads = text.get("num_attention_heads") or text.get("n_head")
        return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def read_model_info(folder: Path, *, source: str | None = None, commit: str | None = None) -> ModelInfo:
    """Read a model from a folder on this machine.

    Raises:
        ModelError: the folder holds no model, or its files are unsafe, incomplete or absurd. Nothing is executed.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{source or folder} is an adapter, not a model", hint="pass it with --adapter")
        raise ModelError(
            f"{folder} has no config.json",
            hint="pass the folder that holds the model's config.json and weights",
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is not a mapping")
    check_bounds(config, name=str(folder / "config.json"))
    check_kernels(config, name=str(folder / "config.json"))
    tensors, left_out = split_towers(config, read_tensors(weight_files(folder)))
    info = ModelInfo(
        source=source or str(folder),
        folder=folder,
        commit=commit,
        config=config,
        generation=read_generation_defaults(folder, config),
        tensors=tensors,
        left_out=left_out,
        has_chat_template=_has_chat_template(folder),
    )
    check_layers(info)
    return info


def check_generates_text(info: ModelInfo) -> None:
    """Refuse a model that needs another input than text, or gives another output, before its weights are read.

    Raises:
        ModelError: it has an encoder for its input, a head that classifies or fills gaps, or needs more than text.
    """
    if info.config.get("is_encoder_decoder") or info.model_type in _ENCODER_DECODERS:
        kind = "an encoder-decoder model, which needs an input for its encoder (text, speech or an image)"
    elif info.architecture.endswith(_OTHER_HEADS):
        kind = "a model that classifies, or fills gaps in a text"
    elif info.model_type in _NOT_FOR_TEXT:
        kind = _NOT_FOR_TEXT[info.model_type]
    else:
        return
    raise ModelError(
        f"{info.source}: {info.architecture} is {kind}; llmctl runs decoder-only models that continue a text",
        hint="choose another model; https://huggingface.co/models?pipeline_tag=text-generation lists them",
    )


def check_bounds(config: Mapping[str, Any], *, name: str) -> None:
    """Refuse a config.json with numbers that no model has. Raises ModelError."""
    parts = {
        "": config,
        **{f"{k}.": v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict)},
    }
    wrong = []
    for prefix, part in parts.items():
        for key, limit in BOUNDS.items():
            value = part.get(key)
            if value is None or isinstance(value, list):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
                wrong.append(f"{prefix}{key} is {str(value)[:40]} (at most {limit})")
    if wrong:
        raise ModelError(f"{name} is absurd: {'; '.join(wrong)}", hint="choose a model from a source you trust")


def check_kernels(config: Any, *, name: str) -> None:
    """Refuse a config.json that names an implementation on the Hub to download and run. Raises ModelError."""
    for key, value in config.items():
        if key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise ModelError(
                f"{name} asks for compiled code from the Hub: {key} is {str(value)[:80]}",
                hint="nothing from a model's repository is executed; choose a model from a source you trust",
            )
        if isinstance(value, dict):
            check_kernels(value, name=name)


def check_layers(info: ModelInfo) -> None:
    """Refuse a checkpoint with fewer blocks than config.json states. Raises ModelError.

    Some models pass through their blocks several times, and count every pass as a layer. The check of missing weights
    serves for them.
    """
    numbers = {int(tensor.block.rpartition(".")[2]) for tensor in info.tensors if tensor.block is not None}
    if numbers and info.layer_count > max(numbers) + 1 and not _repeats_blocks(info, max(numbers) + 1):
        raise ModelError(
            f"{info.source}: config.json says {info.layer_count} layers, the weights have {max(numbers) + 1}",
            hint="the checkpoint is incomplete: download it again",
        )


def _repeats_blocks(info: ModelInfo, blocks: int) -> bool:
    """Return True if config.json states a number of passes, and the layers can be passes through the blocks."""
    repeats = (value for key, value in info.text_config.items() if _PASSES.search(key) and isinstance(value, int))
    return info.layer_count % blocks == 0 and any(value > 1 for value in repeats)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or processor_template(folder) is not None:
        return True
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return False
    settings = read_json(file)
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
