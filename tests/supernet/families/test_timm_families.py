"""One small member of each of timm's families: the costs that a family tells are those of the model that it builds.

Without weights and images. `benchmarks/timm_families.py` compares what supernets compute, too, and more models.
"""

from functools import partial

import numpy as np
import pytest
import timm
import torch

from supernet.costs import count_macs, count_parameters
from supernet.families import from_model
from supernet.families.timm_models import timm_model
from supernet.skeleton import build_skeleton

STAGES = (1, 1, 2, 1)
MODELS = (  # with the options that leave few of their blocks
    (
        {},
        """
        eca_halonext26ts resnext26ts convmixer_1024_20_ks9_p14 cpubone_nano csatv2 darknet17 cspnext_tiny dla46_c dpn48b
        mnasnet_050 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a hgnetv2_b1 hrnet_w18_small iformer_t
        inception_resnet_v2 inception_v3 inception_v4 lowformer_b0 poolformer_s12 gmixer_12_224 lcnet_035
        mobilenetv5_base mobilevit_xxs mvitv2_tiny nasnetalarge nest_tiny_jx nextvit_small pnasnet5large rdnet_tiny
        regnetx_002 repghostnet_058 resnest14d resnet10t resnetv2_18 rexnetr_100 selecsls42 vgg11_bn volo_d1_224
        ese_vovnet19b_slim legacy_xception xception41p
        """,
    ),
    (
        {"depth": 2},
        """
        beit_base_patch16_224 cait_xxs24_224 convit_tiny deepseek_vit_412m deit_tiny_patch16_224
        vit_pe_spatial_tiny_patch16_512 gemma4_vit_167m naflexvit_base_patch16_par_gap qwen3_vit_88m tnt_s_patch16_224
        visformer_small vit_small_patch14_reg4_dinov2 vit_small_r26_s32_384 vit_srelpos_small_patch16_224
        samvit_base_patch16 vitamin_base_224 xcit_nano_12_p8_384
        """,
    ),
    ({"depth": (1, 2, 1)}, "levit_conv_128s pit_ti_224"),
    ({"depth": STAGES}, "efficientvit_m1 repvit_m1 shvit_s2"),
    ({"depth": ((1, 2, 0),) * 3}, "crossvit_tiny_240"),
    ({"depths": (1, 2, 1)}, "efficientvim_m1"),
    (
        {"depths": STAGES},
        """
        convnext_atto davit_tiny edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 fasternet_t1
        inception_next_tiny mambaout_kobe coatnet_0_224 nfnet_f0 pvt_v2_b0 starnet_s050 swin_tiny_patch4_window7_224
        swinv2_tiny_window16_256 swinv2_cr_tiny_384 tiny_vit_11m_224 twins_pcpvt_small
        """,
    ),
    ({"depths": (1, 1, 1, 2, 1)}, "lcnetv2_small"),
    (
        {"layers": STAGES},
        "fastvit_t12 res2next50 legacy_seresnext26_32x4d sequencer2d_s skresnet18 swiftformer_xs tresnet_m",
    ),
    ({"stages": STAGES}, "hiera_small_abswin_256 sam2_hiera_tiny"),
    ({"block_config": (2, 2, 2, 2)}, "densenetblur121d"),
    ({"serial_depths": STAGES, "parallel_depth": 1}, "coat_tiny"),
)
LARGER = {  # on images of so many pixels a side, not of 64
    "eca_halonext26ts": 256,
    "crossvit_tiny_240": 240,
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "inception_v4"), 96),
    **dict.fromkeys(("deepseek_vit_412m", "efficientformer_l1"), 224),
}
USUAL = """
    eca_halonext26ts darknet17 mnasnet_050 ghostnet_050 lcnet_035 mobilevit_xxs regnetx_002 resnet10t vgg11_bn
    cait_xxs24_224 tnt_s_patch16_224 levit_conv_128s repvit_m1 convnext_atto
    swin_tiny_patch4_window7_224 densenetblur121d
"""  # small ones among them, of a way of building each
CASES = [
    pytest.param(name, options, id=name, marks=() if name in USUAL.split() else pytest.mark.exhaustive)
    for options, names in MODELS
    for name in names.split()
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_costs_are_those_of_the_model_that_is_built(name, options):
    size = LARGER.get(name, 64)
    create = partial(timm_model(name, 10, input_size=size).create, **options)
    family = from_model(create, torch.empty(1, 3, size, size))
    arch = family.space.sample(np.random.default_rng(7))  # beside those by which the family chose its formula
    model = build_skeleton(family.build, arch)
    assert family.macs(arch) == count_macs(model, (3, size, size))
    assert family.parameters(arch) == count_parameters(model)


def test_no_family_of_timms_is_missing():
    families = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {timm.models.model_entrypoint(case.values[0]).__module__ for case in CASES} == families
