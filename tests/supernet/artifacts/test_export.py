import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from supernet.artifacts.export import (
    Agreement,
    agreement,
    export_fp16,
    export_onnx,
    export_program,
    program_runner,
)
from supernet.families import FAMILIES


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def random_model(name, **options):
    """A timm model with BatchNorm statistics other than the initial ones: wrong folding would leave those unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **options)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv3_small_050", 64),
        ("tf_efficientnetv2_b0", 64),
        ("resnet10t", 64),
        ("vit_tiny_patch16_224", 224),
        ("convnext_atto", 64),
    ],
)
def test_onnx_runtime_agrees_with_torch(tmp_path, name, size, dynamic_batch):
    model = random_model(name, num_classes=7)
    export_onnx(model, tmp_path / "model.onnx", (3, size, size), dynamic_batch=dynamic_batch)
    images = torch.randn(3 if dynamic_batch else 1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_half_precision_takes_half_the_bytes_and_nearly_agrees(tmp_path):
    model = random_model("resnet10t", num_classes=7)
    export_onnx(model, tmp_path / "model.onnx", (3, 64, 64), dynamic_batch=True, metadata={"classes": '["a"]'})
    export_fp16(tmp_path / "model.onnx", tmp_path / "model.fp16.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.fp16.onnx", "model.onnx")]
    assert sizes[0] < 0.55 * sizes[1]
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact, half = run(tmp_path / "model.onnx", images), run(tmp_path / "model.fp16.onnx", images)
    assert half.dtype == np.float32
    assert 0 < abs(half - exact).max() < 2**-7 * abs(exact).max()
    for name in ("model.onnx", "model.fp16.onnx"):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        assert session.get_modelmeta().custom_metadata_map == {"classes": '["a"]'}


def test_what_cannot_be_traced_is_exported_the_other_way(tmp_path):
    model = random_model("eva02_tiny_patch14_224", num_classes=3, depth=1, img_size=28)
    export_onnx(model, tmp_path / "model.onnx", (3, 28, 28))
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_the_model_keeps_its_mode_and_weights(tmp_path):
    family = FAMILIES["mobilenet_v3_micro"]()
    model = family.build(family.space.smallest).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", (3, 32, 32))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


def test_a_model_that_cannot_be_exported_is_named_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"Eigenvalues cannot be exported to ONNX: .*linalg_eig"):
        export_onnx(Eigenvalues(), tmp_path / "model.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_sizes_are_positive(tmp_path):
    with pytest.raises(ValueError, match=r"sizes are at least 1, not \(3, 0, 8\)"):
        export_onnx(nn.Identity(), tmp_path / "model.onnx", (3, 0, 8))


def test_agreement_by_hand():
    # the second image's classes differ, and the largest difference is that of its first logits
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 0.0, 0.0]])
    other = torch.tensor([[1.0, 2.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 0.0, 0.5]])
    assert agreement(nn.Identity(), lambda images: other, logits) == Agreement(0.75, 2.5)


def test_an_exported_program_computes_the_same_for_any_batch(tmp_path):
    model = random_model("mobilenetv3_small_050", num_classes=7).train()
    export_program(model, tmp_path / "model.pt2", (3, 48, 48))
    assert model.training
    run = program_runner(tmp_path / "model.pt2")
    for count in (1, 5):
        images = torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(1))
        found = agreement(model, run, images)
        assert found.top1 == 1
        assert found.difference < 1e-5
