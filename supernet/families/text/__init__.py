"""Transformers for text."""
