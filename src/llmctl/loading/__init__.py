"""From a plan to a model in memory.

The package is not called `load`, because `llmctl.load` is the public function.
"""
