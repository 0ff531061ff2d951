"""Convert a random checkpoint to GGUF with llama.cpp's own converter, without a vocabulary.

    python benchmarks/shapes_gguf.py LLAMA_SOURCE CHECKPOINT FILE

llama-bench feeds random token ids, and the converter refuses tokenizers that it does not know.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """Convert the checkpoint. Exit with 3 if the converter does not know the architecture."""
    source, folder, file = (Path(argument) for argument in sys.argv[1:])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import gguf
    import torch
    from conversion import ModelBase, ModelType, gemma, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    try:
        model_class = get_model_class(architecture)
    except NotImplementedError:
        sys.exit(3)

    load_hparams = ModelBase.load_hparams

    def with_old_names(*arguments: Any, **options: Any) -> dict[str, Any]:
        """Return a config with the keys of published checkpoints, which transformers 5.24 renames."""
        config: dict[str, Any] = load_hparams(*arguments, **options)
        if "mlp_layer_types" in config:
            config.setdefault("first_k_dense_replace", config["mlp_layer_types"].count("dense"))
        if config.get("model_type") == "granitemoehybrid":
            names = {"full_attention": "attention", "linear_attention": "mamba"}
            config["layer_types"] = [names.get(one, one) for one in config["layer_types"]]
        return config

    ModelBase.load_hparams = staticmethod(with_old_names)

    def set_vocab(self: Any) -> None:
        self.gguf_writer.add_tokenizer_model("no_vocab")
        if not any(f"{self.gguf_writer.arch}.vocab_size" in part for part in self.gguf_writer.kv_data):
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    # Gemma's converter keeps as many rows of the embedding as tokenizer.json has tokens
    rows = range(ModelBase.load_hparams(folder, False)["vocab_size"])
    gemma.json = SimpleNamespace(load=lambda _: {"model": {"vocab": rows}, "added_tokens": ()})
    model_class.set_vocab = set_vocab
    if model_class.supports_mtp_export:
        model_class.no_mtp = True  # the random checkpoints have no layers that predict several tokens
    with torch.inference_mode():
        model_class(folder, gguf.LlamaFileType.MOSTLY_BF16, file).write()


if __name__ == "__main__":
    main()
