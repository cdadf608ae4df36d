import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from exits import Chain, Confidence, exits_taken, export_chain, with_exits

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2
    )
    images = torch.randn(1, 3, 32, 32)
    network = with_exits(model, ["blocks.0", "blocks.2"], 5, (images,)).eval()
    for head in network.heads:
        torch.nn.init.normal_(head.linear.weight, std=0.5)
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_chain_of_files_leaves_where_the_policy_says(network, images, tmp_path):
    with torch.no_grad():
        logits = network(images).numpy()
    policy = Confidence(float(np.median(np.exp(logits[:, 0]).max(1) / np.exp(logits[:, 0]).sum(1))))
    export_chain(network, tmp_path, (images[:1],), policy, latency_ms=np.array([0.5, 1.0, 1.5]))
    assert json.loads((tmp_path / "chain.json").read_text())["latency_ms"] == [0.5, 1.0, 1.5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chain.json",
        "part_0.onnx",
        "part_1.onnx",
        "part_2.onnx",
    ]
    chain, expected = Chain(tmp_path), exits_taken(policy, logits)
    assert len(set(expected)) > 1
    for index, exit in enumerate(expected):
        found = chain(images[index : index + 1].numpy())
        assert found.exit == exit
        np.testing.assert_allclose(found.logits, logits[index, exit], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="one by one"):
        chain(images[:2].numpy())


def test_exits_that_are_not_kept_are_in_no_file(network, images, tmp_path):
    export_chain(network, tmp_path, (images[:1],), None, kept=(1,))
    found = Chain(tmp_path)(images[:1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found.logits, network(images[:1])[0, 1].numpy(), rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "part_1.onnx").exists()


def test_a_device_runs_a_chain_without_torch(network, images, tmp_path):
    export_chain(network, tmp_path, (images[:1],), Confidence(0.1))
    code = (
        "import sys; sys.modules['torch'] = None; import numpy; from exits import Chain; "
        f"print(Chain({str(tmp_path)!r})(numpy.zeros((1, 3, 32, 32), 'float32')).exit)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_an_exit_within_a_block_is_refused(images, tmp_path):
    model = timm.create_model("resnet18", num_classes=5)
    inside = with_exits(model, ["layer2.0.conv2"], 5, (images[:1],))
    torch.nn.init.normal_(inside.heads[0].linear.weight)
    with pytest.raises(ValueError, match="exit after a whole block"):
        export_chain(inside, tmp_path, (images[:1],))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_chain_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"chain.json describes no chain"):
        Chain(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "describes no chain"),
        ({"files": [], "policy": None}, "describes no chain of ONNX files: it names none"),
        ({"files": ["a.onnx"], "policy": ["entropy"]}, "is no policy"),
        ({"files": ["a.onnx"], "policy": {"policy": "entropy", "entropy": "low"}}, "is no policy"),
        ({"files": [1], "policy": None}, "describes no chain"),
        ({"files": ["a.onnx"], "policy": None}, "a file of .*chain.json cannot be run"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path, content, message):
    (tmp_path / "chain.json").write_text(json.dumps(content))
    (tmp_path / "a.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match=message) as error:
        Chain(tmp_path)
    assert "\n" not in str(error.value)
