"""Search spaces with a name. A family's function takes options such as `num_classes` and returns a `Family`.

The option `name` of `from_timm` is a model of timm's; `from_model` does the same for any model.
"""

from collections.abc import Callable

from supernet.families.attentive_nas import alphanet
from supernet.families.autoformer import autoformer_base, autoformer_small, autoformer_tiny
from supernet.families.ensemble import ensemble
from supernet.families.family import Description, Family, describe
from supernet.families.mixed_precision import mixed_precision
from supernet.families.mobilenet_v3 import mobilenet_v3_micro, ofa_mobilenet_v3
from supernet.families.nas_bench_201 import nasbench201
from supernet.families.nas_bench_macro import nasbench_macro
from supernet.families.ofa_checkpoint import load_ofa_checkpoint
from supernet.families.resnet import ofa_resnet50
from supernet.families.shufflenet import shufflenet_spos
from supernet.families.shufflenet_v1 import shufflenet_v1
from supernet.families.text.decoder import text_decoder
from supernet.families.text.encoder import text_encoder
from supernet.families.timm_models import just_timm
from supernet.families.traced.models import from_model, from_timm
from supernet.families.traced.narrowed import narrowed
from supernet.families.vision_transformer import vit

FAMILIES: dict[str, Callable[..., Family]] = {
    "alphanet": alphanet,
    "autoformer_base": autoformer_base,
    "autoformer_small": autoformer_small,
    "autoformer_tiny": autoformer_tiny,
    "ensemble": ensemble,
    "from_timm": from_timm,
    "mixed_precision": mixed_precision,
    "mobilenet_v3_micro": mobilenet_v3_micro,
    "narrowed": narrowed,
    "nasbench201": nasbench201,
    "nasbench_macro": nasbench_macro,
    "ofa_mobilenet_v3": ofa_mobilenet_v3,
    "ofa_resnet50": ofa_resnet50,
    "shufflenet_spos": shufflenet_spos,
    "shufflenet_v1": shufflenet_v1,
    "text_decoder": text_decoder,
    "text_encoder": text_encoder,
    "timm": just_timm,
    "vit": vit,
}

__all__ = ["FAMILIES", "Description", "Family", "describe", "from_model", "from_timm", "load_ofa_checkpoint"]
