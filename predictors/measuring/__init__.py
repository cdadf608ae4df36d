"""Measuring: what runs a network, how its time is taken, and the files of what was measured."""
