"""Serving: what stands between an agent and a served model. Import from the modules: this package loads nothing."""
