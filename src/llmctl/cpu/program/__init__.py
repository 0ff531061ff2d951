"""Models of supported families as one program of llmctl's CPU kernels.

Each family has a file (llama.py, gemma.py, …) that builds its layers from the blocks in blocks.py. Blocks read the
modules of a model and write operations (writer.py); run.py runs them in one call of the compiled library. To add a
family, add a file; compile.py finds it. modules.py makes the modules of a compiled model round as its program does.
"""

from llmctl.cpu.program.compile import CompiledModel, compile_model, compiled, families

__all__ = ["CompiledModel", "compile_model", "compiled", "families"]
