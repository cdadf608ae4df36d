"""Families of models that are no family's own: what can vary is found by tracing them."""
