"""A model as served, and where its weights come from.

Not a judge and not a store: imports nothing of the project but `types`, and never torch. The rule it protects: what a
runtime answers leaves this room as the words of `types`, whichever runtime it was.
"""
