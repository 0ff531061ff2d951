"""A model of a known family as one program of llmctl's kernels for CPUs.

Each family has a file (llama.py, gemma.py, …) that builds its layers of the blocks of blocks.py. Blocks read the
modules of a model and write operations (writer.py); run.py runs these as one call of the compiled library. To add a
family, add its file: compile.py finds it. modules.py makes the modules of the model round as the program does.
"""

from llmctl.cpu.program.compile import CompiledModel, compile_model, compiled, families

__all__ = ["CompiledModel", "compile_model", "compiled", "families"]
