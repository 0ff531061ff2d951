"""Imports that every check needs. The server from which the checks are forked makes them once."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin  # noqa: E402, F401
from transformers.models.llama import modeling_llama  # noqa: E402, F401

import llmctl  # noqa: E402, F401
from llmctl.generation import stream  # noqa: E402, F401
from llmctl.quant import hf_quantizer  # noqa: E402, F401

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
