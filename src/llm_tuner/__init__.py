"""llm-tuner: makes a local model call your tools right.

The package is eleven rooms on seven layers; imports only go down. Start with `llm_tuner.types`: the words that
every other room speaks. `docs/design.md` draws the whole house.
"""

__version__ = "0.1.0"
