"""What of timm's models can vary: a supernet around one or two small architectures of each of its families.

    python benchmarks/timm_families.py --json benchmarks/results/timm_families.json   # about an hour on one core
    python benchmarks/timm_families.py --quick     # four small models: a minute
    python benchmarks/timm_families.py --cache rows.jsonl --minutes 30    # goes on where the last run with it ended

Each becomes a family (`supernet.families.from_timm`) with 10 classes, on images of 64 pixels a side, or of 224, or of
its own size, the smallest on which it runs. MACs and parameters are compared with those counted in a
forward pass, at the largest, the smallest and a random architecture. Of models of up to 170 million parameters, with
random weights, vectors and statistics and in double precision, the logits must stay the same when the channels are
reordered by importance (`reordered`: the largest difference over the largest logit), and the smallest and a random
subnet must be, extracted, what they are in the supernet (`extracted`). Larger models are made into supernets, and not
run. `failure` is what went wrong, or why a model is refused.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import tyro
from report import report
from rich.progress import track
from torch import nn

from supernet.costs import count_macs, count_parameters
from supernet.errors import first_line
from supernet.families import Family, from_model
from supernet.families.timm_models import timm_model
from supernet.skeleton import build_skeleton

SMALL = 64  # pixels a side
RUN = 170e6  # parameters at most of the models whose function is compared
MODELS = """
beit_base_patch16_224 halonet_h1 gernet_s cait_xs24_384 coat_tiny convit_tiny convmixer_768_32 convnext_atto
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_s cspnext_tiny davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
tinynet_e efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224
sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_128s lowformer_b0 mambaout_femto coatnet_0_224 poolformer_s12 gmlp_ti16_224
mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge
nest_tiny nextvit_small nfnet_f0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002
repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
vgg11 visformer_tiny vit_small_patch14_dinov2 vit_small_r26_s32_224 vit_srelpos_small_patch16_224
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
xcit_nano_12_p8_224 beitv2_base_patch16_224 eca_halonext26ts repvgg_a0 cait_s24_224 coat_mini convit_small
convmixer_1024_20_ks9_p14 convnextv2_atto cpubone_t0 crossvit_9_240 csatv2_21m darknet17 cspnext_s davit_small
deepseek_vit_412m_align deit_small_patch16_224 densenetblur121d dla46_c dpn68 edgenext_x_small
efficientformer_l3 efficientformerv2_s1 mnasnet_050 efficientvim_m1_dist efficientvit_b1 efficientvit_m1
vit_pe_spatial_tiny_patch16_512 fasternet_t1 fastvit_t12 focalnet_small_srf gcvit_xtiny gemma4_vit_167m_enc
ghostnetv3_050 hardcorenas_a hgnetv2_b1 hiera_small_abswin_256 sam2_hiera_small hrnet_w18_small_v2 iformer_s
inception_next_tiny lcnetv2_base levit_conv_128s lowformer_b1 mambaout_kobe coatnet_1_224 poolformer_s24
gmixer_12_224 lcnet_035 mobilenetv5_300m_enc mobilevitv2_050 mvitv2_small naflexvit_base_patch16_par_gap
nest_tiny_jx nextvit_base dm_nfnet_f0 pit_xs_224 pvt_v2_b1 qwen3_vit_88m_enc rdnet_small regnetx_004
repghostnet_058 repvit_m0_9 res2net50_14w_8s resnest26d resnet14t resnetv2_18d rexnetr_100 selecsls60
legacy_seresnext26_32x4d sequencer2d_m shvit_s2 skresnet34 starnet_s100 swiftformer_s swin_s3_tiny_224
swinv2_tiny_window8_256 swinv2_cr_tiny_384 tiny_vit_11m_224 tnt_s_patch16_224 tresnet_v2_l twins_pcpvt_small
vgg11_bn visformer_small vit_small_patch14_reg4_dinov2 vit_small_r26_s32_384 vit_relpos_small_patch16_224
samvit_base_patch16 vitamin_base_224 volo_d1_384 ese_vovnet19b_slim xception41 xcit_nano_12_p8_384
"""
NUMBER = re.compile(r"\b([a-z]|level|stage|\w*(?:blocks?|layer|_))?\d+\b")  # of a stage or block
KINDS = 12  # of choices that a row names at most
QUICK = ("resnet10t", "mobilenetv3_small_050", "resnext26ts", "convnextv2_atto")


@dataclass(frozen=True)
class Arguments:
    quick: bool = False
    """A few models."""
    json: Path | None = None
    """Write the result here."""
    cache: Path | None = None
    """JSON lines with the models so far, which are not tried again."""
    minutes: float = math.inf
    """End after so many minutes, with the models tried until then."""


def main(arguments: Arguments) -> None:
    rows = {}
    if arguments.cache and arguments.cache.exists():
        rows = {row["model"]: row for row in map(json.loads, arguments.cache.read_text().splitlines())}
    end = time.monotonic() + 60 * arguments.minutes
    models = QUICK if arguments.quick else MODELS.split()
    for name in track([name for name in models if name not in rows], "models"):
        if time.monotonic() > end:
            break
        rows[name] = examine(name)
        if arguments.cache:
            with arguments.cache.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
    tried = sorted((rows[name] for name in models if name in rows), key=lambda row: (row["family"], row["model"]))
    report(tried, summary(tried), arguments.json)


def summary(rows: list[dict]) -> dict[str, float]:
    return {
        "architectures": len(rows),
        "supernets": sum(row["choices"] > 0 and not row["failure"] for row in rows),
        "crashes": sum(row["failure"].startswith("crash") for row in rows),
        "wrong_macs": sum(row["macs"] == "wrong" for row in rows),
        "counted_by_running": sum(row["macs"] == "counted" for row in rows),
        "compared": sum(row["reordered"] != "" for row in rows),
        "not_reordered": sum(row["reordered"] != "" and not row["reordered"] < 1e-8 for row in rows),
        "not_extracted": sum(row["extracted"] is False for row in rows),
    }


def examine(name: str) -> dict[str, object]:
    """A row of the table."""
    row = {
        "family": timm.models._registry._model_to_module[name],
        "model": name,
        "choices": 0,
        "varies": "",
        "kept": "",  # the MACs of the smallest in those of the largest
        "macs": "",
        "reordered": "",
        "extracted": "",
        "failure": "",
    }
    try:
        family, size = _family(name)
        space = family.space
        kinds = list(dict.fromkeys(NUMBER.sub(r"\1*", choice) for choice in space.choices))
        row["choices"] = len(space.choices)
        row["varies"] = ", ".join([*kinds[:KINDS], *([f"and {len(kinds) - KINDS} more"] if kinds[KINDS:] else [])])
        row["kept"] = round(family.macs(space.smallest) / family.macs(space.largest), 2)
        archs = [space.largest, space.smallest, space.sample(np.random.default_rng(7))]
        skeletons = [build_skeleton(family.build, arch) for arch in archs]
        exact = all(family.macs(a) == count_macs(m, (3, size, size)) for a, m in zip(archs, skeletons))
        exact &= all(family.parameters(a) == count_parameters(m) for a, m in zip(archs, skeletons))
        row["macs"] = ("formula" if isinstance(family.macs, partial) else "counted") if exact else "wrong"
        if family.parameters(space.largest) <= RUN:
            row["reordered"], row["extracted"] = _function(family, name, size)
        else:
            family.supernet(pretrained=False)
    except ValueError as error:
        row["failure"] = f"refused: {error}"
    except Exception as error:  # what is looked for
        row["failure"] = f"crash: {type(error).__name__}: {first_line(error)}"
    return row


def _family(name: str) -> tuple[Family, int]:
    """The family of a model, on the smallest images on which it runs."""
    own = timm_model(name, 10).input_size
    for size in sorted({SMALL, 224} - {own}):
        try:
            return _family_at(name, size), size
        except Exception:  # too small, or fixed: it is tried at its own size
            continue
    return _family_at(name, own), own


def _family_at(name: str, size: int) -> Family:
    """`from_timm`, with weights of `_randomised`."""
    create = timm_model(name, 10, input_size=size).create
    return from_model(create, torch.empty(1, 3, size, size), pretrained=partial(_randomised, create))


def _function(family: Family, name: str, size: int) -> tuple[float, bool]:
    """How much reordering changes the logits, and whether subnets are what they are when extracted."""
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = _randomised(timm_model(name, 10, input_size=size).create).double()(images)
        net = family.supernet().eval().double()
        change = (net(images, family.space.largest) - expected).abs().max() / expected.abs().max()
        archs = [family.space.smallest, family.space.sample(np.random.default_rng(7))]
        same = all(torch.equal(net(images, arch), net.extract(arch)(images)) for arch in archs)
    return change.item(), same


def _randomised(create: Callable[[], nn.Module]) -> nn.Module:
    """Vectors and statistics that differ from channel to channel, where initialisation makes them all alike, and a
    classifier that is not as good as zero."""
    torch.manual_seed(0)
    model = create()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=0):
            low = 0.5 if name.endswith(("weight", "running_var", "gamma", "scale")) else -0.5
            tensor.uniform_(low, low + 1, generator=generator)
    classifier = model.get_classifier()
    for layer in classifier if isinstance(classifier, tuple) else (classifier,):
        for weight in layer.parameters():
            if weight.dim() > 1 and weight.std() < 1e-3:  # the logits would be its biases
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=generator)
    return model.eval()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
