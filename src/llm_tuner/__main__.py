"""`python -m llm_tuner` is the command line."""

from llm_tuner.apps.cli import main

main()
