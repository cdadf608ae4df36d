"""Search spaces with a name. A family's function takes options such as `num_classes` and returns a `Family`."""

from supernet.families.family import Family
from supernet.families.mobilenet_v3 import mobilenet_v3_micro, ofa_mobilenet_v3
from supernet.families.nas_bench_201 import nasbench201
from supernet.families.nas_bench_macro import nasbench_macro

FAMILIES = {
    "mobilenet_v3_micro": mobilenet_v3_micro,
    "nasbench201": nasbench201,
    "nasbench_macro": nasbench_macro,
    "ofa_mobilenet_v3": ofa_mobilenet_v3,
}

__all__ = ["FAMILIES", "Family"]
