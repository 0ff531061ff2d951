"""The entry point of `python -m llmctl`, which does the same as `llmctl`."""

from llmctl.cli.main import run

if __name__ == "__main__":
    run()
