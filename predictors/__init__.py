"""Latency: devices and runtimes that measure it, predictors that answer for it."""

from predictors.device import Device, this_device
from predictors.latency import LatencyPredictor, Prediction
from predictors.measure import Protocol, measure
from predictors.runtimes import prepare

__all__ = ["Device", "LatencyPredictor", "Prediction", "Protocol", "measure", "prepare", "this_device"]
