"""Training: rows -> adapter -> GGUF. With its sub-modules the only place that knows torch.

It never reaches a model server: rows arrive as the token ids that the serving runtime itself made, and what leaves is
a file. Importing this package loads nothing heavy; the recipes import torch when they are called.
"""
