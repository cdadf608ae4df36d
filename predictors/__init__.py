"""Latency: devices and runtimes that measure it, predictors that answer for it."""

from predictors.device import Device, is_this_machine, this_device
from predictors.latency import LatencyPredictor, Prediction, suggest
from predictors.measuring.measure import MeasuringConfig, measure
from predictors.measuring.runtimes import prepare
from predictors.sampling import stratified
from predictors.transfer import family_costs

__all__ = [
    "Device",
    "LatencyPredictor",
    "MeasuringConfig",
    "Prediction",
    "family_costs",
    "is_this_machine",
    "measure",
    "prepare",
    "stratified",
    "suggest",
    "this_device",
]
