"""Families of models that take images: the small settings of their processors and configurations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.architectures.sizes import VOCABULARY
from support.vision import templates
from support.vision.conversations import CONVERSATIONS

PATCH = 14
IMAGE = 4 * PATCH  # width and height of what towers with a fixed size see
_SQUARE = {"height": IMAGE, "width": IMAGE}
_IMAGE_TOWER = {"image_size": IMAGE, "patch_size": PATCH}
_GRID = [[IMAGE, IMAGE], [IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE], [2 * IMAGE, 2 * IMAGE]]


@dataclass(frozen=True)
class Family:
    """How a tiny checkpoint of a family differs from that of another.

    Attributes:
        processor: The class of the processor.
        image_processor: The class of the image processor, and its settings.
        image_settings: Settings of the image processor.
        settings: Settings of the processor itself.
        template: The chat template. Base models have none.
        placeholder: The text of an image in a prompt without a template.
        tokens: Special tokens beside those of `named_tokens` and `ids`.
        named_tokens: Special tokens that are attributes of the tokenizer.
        ids: Fields of the configuration that hold the id of a token.
        config: Further fields of the configuration, parts included.
        vocabulary: The number of tokens that the model has.
        query_factor: A factor on the weights of queries, where attention would be too even for images to matter.
        adds_bos: The tokenizer writes the token of the beginning before every text.
        is_nested: The settings of the image processor lie in processor_config.json, as newer repositories have them.
        packages: Packages that the processor needs beside Pillow.
        cannot: Conversations that transformers itself does not answer, with its error.
    """

    processor: str
    image_processor: str
    image_settings: Mapping[str, Any]
    placeholder: str
    template: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = VOCABULARY
    query_factor: float = 1.0
    adds_bos: bool = False
    is_nested: bool = False
    packages: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)


_QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _qwen(processor: str, *, patch: int = 8, text: Mapping[str, Any] | None = None, **vision: Any) -> Family:
    return Family(
        processor=processor,
        image_processor="Qwen2VLImageProcessor",
        image_settings={
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 9 * (2 * patch) ** 2, "longest_edge": 24 * (2 * patch) ** 2},
        },
        template=templates.QWEN,
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        ids=_QWEN_TOKENS,
        config={"vision_config": {"patch_size": patch, **vision}, "text_config": {**(text or {})}},
    )


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), "mrope_interleaved": True}
    return {"rope_parameters": rope | more}


def _idefics(processor: str, image_processor: str, **more: Any) -> Family:
    return Family(
        processor=processor,
        image_processor=image_processor,
        image_settings={"size": {"longest_edge": 2 * IMAGE}, "max_image_size": {"longest_edge": IMAGE}},
        settings={"image_seq_len": 4},
        template=templates.IDEFICS3,
        placeholder="<image>",
        tokens=(
            "<fake_token_around_image>",
            "<end_of_utterance>",
            "<global-img>",
            *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
        ),
        ids={"image_token_id": "<image>"},
        config={"vision_config": _IMAGE_TOWER},
        **more,
    )


_SIGLIP_TOWER = {"vision_config": _IMAGE_TOWER}
_CLIP_IMAGE = {"size": {"shortest_edge": IMAGE}, "crop_size": _SQUARE}
_CLIP_PROCESSOR = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
_GEMMA4_IMAGE = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor", window_size=32, fullatt_block_indexes=[1]),
    "qwen3_vl": _qwen(
        "Qwen3VLProcessor", text=_mrope(4, 2, 2), deepstack_visual_indexes=[0, 1], num_position_embeddings=16
    ),
    "qwen3_5": _qwen("Qwen3VLProcessor", text=_mrope(2, 1, 1, partial_rotary_factor=0.5), num_position_embeddings=16),
    "qwen2_vl": _qwen("Qwen2VLProcessor"),
    "gemma3": Family(
        processor="Gemma3Processor",
        image_processor="Gemma3ImageProcessor",
        image_settings={"size": _SQUARE},
        settings={"image_seq_length": 16},
        template=templates.GEMMA3,
        placeholder="<start_of_image>",
        tokens=("<start_of_turn>", "<end_of_turn>"),
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        ids={
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        config={
            "mm_tokens_per_image": 16,
            "vision_config": {"image_size": IMAGE, "patch_size": PATCH // 2},
            "text_config": {"query_pre_attn_scalar": 1},
        },
        adds_bos=True,
    ),
    "mistral3": Family(
        processor="PixtralProcessor",
        image_processor="PixtralImageProcessor",
        image_settings={"patch_size": 8, "size": {"longest_edge": 96}},
        settings={"patch_size": 8, "spatial_merge_size": 2},
        template=templates.MISTRAL3,
        placeholder="[IMG]",
        tokens=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ids={"image_token_index": "[IMG]"},
        config={"vision_config": {"image_size": 96, "patch_size": 8}, "tie_word_embeddings": False},
        adds_bos=True,
    ),
    "llava": Family(
        processor="LlavaProcessor",
        image_processor="CLIPImageProcessor",
        image_settings=_CLIP_IMAGE,
        settings=_CLIP_PROCESSOR,
        template=templates.LLAVA,
        placeholder="<image>",
        ids={"image_token_index": "<image>"},
        config={"vision_config": _IMAGE_TOWER, "image_seq_length": 16},
        adds_bos=True,
    ),
    "idefics3": _idefics("Idefics3Processor", "Idefics3ImageProcessor"),
    "smolvlm": _idefics("SmolVLMProcessor", "SmolVLMImageProcessor", packages=("num2words",)),
    "gemma4": Family(
        processor="Gemma4Processor",
        image_processor="Gemma4ImageProcessor",
        image_settings=_GEMMA4_IMAGE,
        settings={
            "image_seq_length": 70,
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor", **_GEMMA4_IMAGE},
        },
        template=templates.GEMMA4,
        placeholder="<|image|>",
        tokens=("<|turn>", "<turn|>"),
        named_tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        ids={
            "image_token_id": "<|image|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "video_token_id": "<|video|>",
            "audio_token_id": "<|audio|>",
            "boa_token_id": "<|audio>",
            "eoa_token_index": "<audio|>",
        },
        config={
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 16,
                "patch_size": 8,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
            },
            "audio_config": {
                "model_type": "gemma4_audio",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "output_proj_dims": 32,
            },
            "text_config": {"global_head_dim": 32, "num_kv_shared_layers": 2, "use_bidirectional_attention": "vision"},
        },
        adds_bos=True,
        is_nested=True,
    ),
    "llava_onevision": Family(
        processor="LlavaOnevisionProcessor",
        image_processor="LlavaOnevisionImageProcessor",
        image_settings={"size": _SQUARE, "image_grid_pinpoints": _GRID},
        settings={
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        template=templates.LLAVA_ONEVISION,
        placeholder="<image>",
        ids={"image_token_index": "<image>", "video_token_index": "<video>"},
        config={"vision_config": _IMAGE_TOWER, "image_grid_pinpoints": _GRID},
    ),
    "llava_next": Family(
        processor="LlavaNextProcessor",
        image_processor="LlavaNextImageProcessor",
        image_settings={**_CLIP_IMAGE, "image_grid_pinpoints": _GRID[1:]},
        settings=_CLIP_PROCESSOR,
        template=templates.LLAVA_NEXT,
        placeholder="<image>",
        ids={"image_token_index": "<image>"},
        config={"vision_config": _IMAGE_TOWER, "image_grid_pinpoints": _GRID[1:], "image_seq_length": 16},
        adds_bos=True,
    ),
    "internvl": Family(
        processor="InternVLProcessor",
        image_processor="GotOcr2ImageProcessor",
        image_settings={"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4},
        settings={"image_seq_length": 4},
        template=templates.INTERNVL,
        placeholder="<IMG_CONTEXT>",
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ids={"image_token_id": "<IMG_CONTEXT>"},
        config={
            "vision_config": {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
    ),
    "paligemma": Family(
        processor="PaliGemmaProcessor",
        image_processor="SiglipImageProcessor",
        image_settings={"size": _SQUARE, "image_seq_length": 16},
        placeholder="<image>",
        tokens=(
            *(f"<loc{number:04d}>" for number in range(1024)),
            *(f"<seg{number:03d}>" for number in range(128)),
        ),
        ids={"image_token_index": "<image>"},
        config={
            "vision_config": {**_IMAGE_TOWER, "projection_dim": 64},
            "text_config": {"num_image_tokens": 16},
            "projection_dim": 64,
        },
        vocabulary=1440,
        query_factor=4.0,
        adds_bos=True,
        cannot={"no picture": "`images` are expected as arguments to a `PaliGemmaProcessor`"},
    ),
    "glm4v": Family(
        processor="Glm4vProcessor",
        image_processor="Glm4vImageProcessor",
        image_settings={
            "patch_size": 8,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 2 * 9 * 16**2, "longest_edge": 2 * 24 * 16**2},
        },
        template=templates.GLM4V,
        placeholder="<|begin_of_image|><|image|><|end_of_image|>",
        tokens=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        ids={
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        config={"vision_config": {"image_size": IMAGE, "patch_size": 8}},
    ),
    "aya_vision": Family(
        processor="AyaVisionProcessor",
        image_processor="GotOcr2ImageProcessor",
        image_settings={"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4},
        settings={"patch_size": PATCH, "img_size": IMAGE, "downsample_factor": 2},
        template=templates.AYA_VISION,
        placeholder="<image>",
        tokens=(
            "<image>",
            *("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"),
            *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
            *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        ),
        ids={"image_token_index": "<|IMG_PATCH|>"},
        config={"vision_config": _IMAGE_TOWER, "alignment_intermediate_size": 128},
        adds_bos=True,
    ),
    "lfm2_vl": Family(
        processor="Lfm2VlProcessor",
        image_processor="Lfm2VlImageProcessor",
        image_settings={
            "tile_size": IMAGE,
            "encoder_patch_size": PATCH,
            "downsample_factor": 2,
            "min_image_tokens": 2,
            "max_image_tokens": 8,
            "max_num_patches": 64,
            "min_tiles": 2,
            "max_tiles": 4,
        },
        template=templates.LFM2_VL,
        placeholder="<image>",
        tokens=(
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *(f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)),
        ),
        ids={"image_token_id": "<image>"},
        config={"vision_config": {"patch_size": PATCH, "num_patches": 16}, "projector_hidden_size": 64},
        adds_bos=True,
        is_nested=True,
        packages=("torchvision",),
    ),
    "llama4": Family(
        processor="Llama4Processor",
        image_processor="Llama4ImageProcessor",
        image_settings={"size": _SQUARE, "max_patches": 4, "resize_to_max_canvas": False},
        settings={"patch_size": PATCH, "pixel_shuffle_ratio": 0.5},
        template=templates.LLAMA4,
        placeholder="<|image|>",
        tokens=(
            *("<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
            *("<|header_start|>", "<|header_end|>", "<|eot|>"),
        ),
        ids={
            "image_token_index": "<|patch|>",
            "boi_token_index": "<|image_start|>",
            "eoi_token_index": "<|image_end|>",
        },
        config={
            "vision_config": {
                **_IMAGE_TOWER,
                "intermediate_size": 256,  # four patches of the hidden size, which become one token
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
            }
        },
        adds_bos=True,
        packages=("torchvision",),
        cannot=dict.fromkeys(CONVERSATIONS, "has no attribute 'image_outputs'"),  # transformers 5.24
    ),
}
