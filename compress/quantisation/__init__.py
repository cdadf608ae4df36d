"""Networks in 8 bits: where they are rounded, by what ranges, and as a file."""

from compress.quantisation.compensation import compensated
from compress.quantisation.network import Precision, Quantisation, Quantised, planned, quantise
from compress.quantisation.onnx_file import export_int8
from compress.quantisation.points import layers
from compress.quantisation.processor import products_saturate
from compress.quantisation.ranges import Range, activation_ranges

__all__ = [
    "Precision",
    "Quantisation",
    "Quantised",
    "Range",
    "activation_ranges",
    "compensated",
    "export_int8",
    "layers",
    "planned",
    "products_saturate",
    "quantise",
]
