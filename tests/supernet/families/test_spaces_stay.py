"""The spaces of the common models: runs, histories and predictors on disk hold their choices by name and order."""

import pytest

from supernet.families import from_timm

FINGERPRINTS = {
    "resnet18": "01199c27c65c",
    "resnet50": "2aeb47a8a73f",
    "seresnet18": "d52b1d7fc7c0",
    "mobilenetv2_035": "9e1ee5118993",
    "mobilenetv3_small_050": "725bc063ce34",
    "mobilenetv3_large_100": "b5617174f0d0",
    "mobilenetv4_conv_small": "189abdfc0178",
    "efficientnet_b0": "702463dd4454",
    "efficientnet_lite0": "674095400aac",
    "tf_efficientnetv2_b0": "b065fe6d4654",
    "convnext_atto": "ead8e444368e",
    "convnext_tiny": "c2b6a130f7d2",
    "vit_tiny_patch16_224": "3ecbfd0657c1",
    "mnasnet_small": "93a802eabb03",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_space_of_a_common_model_stays_what_it_was(name):
    size = None if name.startswith("vit") else 64
    assert from_timm(name, num_classes=10, input_size=size).space.fingerprint == FINGERPRINTS[name]
