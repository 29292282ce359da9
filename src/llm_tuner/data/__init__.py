"""Data: makes tasks and attempts, checks them, splits them, and turns right attempts into training rows.

It asks models and tools through their protocols only; what it keeps goes to disk, where training finds it.
"""
