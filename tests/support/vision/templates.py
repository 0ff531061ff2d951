"""Chat templates of families that take images: shortened, but roles, texts and images are written in the real form."""

_EACH = "{% for m in messages %}"
_IMAGES_FIRST = "{% for part in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
_TEXTS = "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}"


def _parts(image: str, *, text: str = "part.text") -> str:
    """Return the template of a content, which is a text or a list of parts."""
    return (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}" + image + "{% elif part.type == 'text' %}{{ " + text + " }}{% endif %}"
        "{% endfor %}{% endif %}"
    )


def chatml(image: str) -> str:
    """Return ChatML, as Qwen, InternVL and LFM2 have it, with what is written for an image."""
    return (
        _EACH + "<|im_start|>{{ m.role }}\n" + _parts(image) + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


QWEN = chatml("<|vision_start|><|image_pad|><|vision_end|>")
INTERNVL = chatml("<IMG_CONTEXT>\n")
LFM2_VL = "{{ bos_token }}" + chatml("<image>")
GEMMA3 = (
    "{{ bos_token }}" + _EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% elif part.type == 'text' %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}"
    + _EACH
    + "<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    + _parts("<|image|>", text="part.text | trim")
    + "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
MISTRAL3 = (
    "{{ bos_token }}" + _EACH + "{% if m.role == 'system' %}[SYSTEM_PROMPT]" + _parts("[IMG]") + "[/SYSTEM_PROMPT]"
    "{% elif m.role == 'user' %}[INST]"
    + _parts("[IMG]")
    + "[/INST]{% else %}"
    + _parts("[IMG]")
    + "{{ eos_token }}{% endif %}{% endfor %}"
)
# These read lists of parts alone: the text of a message whose content is a string is lost.
LLAVA = (
    _EACH + "{% if m.role != 'system' %}{{ m.role.upper() }}: {% endif %}" + _IMAGES_FIRST + _TEXTS + " {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAVA_ONEVISION = (
    _EACH + "<|im_start|>{{ m.role }} " + _IMAGES_FIRST + _TEXTS.replace("{{", "\n{{") + "{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_NEXT = (
    _EACH
    + "{% if m.role == 'user' %}[INST] "
    + _IMAGES_FIRST
    + _TEXTS
    + " {% endfor %}[/INST]{% else %}"
    + _TEXTS
    + "{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
IDEFICS3 = (
    "<|im_start|>" + _EACH + "{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}<image>"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
GLM4V = (
    "[gMASK]<sop>"
    + _EACH
    + "<|{{ m.role }}|>\n"
    + _parts("<|begin_of_image|><|image|><|end_of_image|>")
    + "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA4 = (
    "{{ bos_token }}"
    + _EACH
    + "<|header_start|>{{ m.role }}<|header_end|>\n\n"
    + _parts("<|image|>")
    + "<|eot|>{% endfor %}{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)
AYA_VISION = (
    "{{ bos_token }}" + _EACH + "<|START_OF_TURN_TOKEN|>"
    "{{ '<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|' ~ m.role.upper() ~ '_TOKEN|>' }}"
    + _parts("<image>")
    + "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    "{% endif %}"
)
