"""Regression: from architectures and measurements to predictions and how sure they are."""
