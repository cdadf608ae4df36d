"""One small member of many of timm's families: the costs that a family tells are those of the model that it builds."""

import numpy as np
import pytest

from supernet.costs import count_macs, count_parameters
from supernet.families import from_timm
from supernet.skeleton import build_skeleton

MODELS = {  # with the pixels a side on which they run
    "swin_tiny_patch4_window7_224": 224,  # windows in place of the batch
    "mobilevit_xxs": 64,  # patches in place of the batch
    "gmixer_12_224": 224,  # channels in place of rows
    "resnext26ts": 64,  # groups
    "resnetv2_18": 64,
    "convnextv2_atto": 64,  # global response normalisation
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "xcit_nano_12_p8_224": 64,  # attention of channels
    "starnet_s050": 64,
    "ghostnet_050": 64,
    "mambaout_femto": 64,
    "fastvit_t8": 64,
}


@pytest.mark.parametrize("name", MODELS)
def test_costs_are_those_of_the_model_that_is_built(name):
    family = from_timm(name, num_classes=10, input_size=MODELS[name])
    space = family.space
    for arch in (space.largest, space.smallest, space.sample(np.random.default_rng(7))):
        model = build_skeleton(family.build, arch)
        assert family.macs(arch) == count_macs(model, (3, MODELS[name], MODELS[name]))
        assert family.parameters(arch) == count_parameters(model)
