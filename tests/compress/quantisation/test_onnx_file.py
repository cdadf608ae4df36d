import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import numpy_helper
from torch import nn

from compress.quantisation import export_int8, products_saturate, quantise
from supernet.artifacts.export import agreement, export_onnx, onnx_runner


def random_model(name):
    """A timm model with BatchNorm statistics other than the initial ones: wrong folding would leave those unnoticed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def weights_of(path):
    """The weights that are stored in a file, by the names of their layers; biases and the like are not."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: array for name, array in stored.items() if array.ndim > 1}


def kernels(path, folder):
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.parametrize("reduced", [True, None])
def test_every_rounding_of_a_linear_layer_can_be_followed(tmp_path, reduced):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(40, 3, 2, 2) * 2 - 1
    network = quantise(model, images.split(16), "extremes", reduce_range=reduced, rounding="nearest")
    export_int8(network, tmp_path / "int8.onnx", (3, 2, 2), dynamic_batch=True)
    weight, levels = model[1].weight.detach(), 63 if reduced or products_saturate() else 127
    x, low, high = images.flatten(1), images.min(), images.max()
    step = (high - low) / 255
    x = (((x / step).round() + (-low / step).round()).clamp(0, 255) - (-low / step).round()) * step
    steps = weight.abs().amax(1, keepdim=True) / levels
    expected = x @ ((weight / steps).round() * steps).T + model[1].bias.detach()
    of_bias = (steps * step).max() / 2  # half a step of the bias, which is an integer, too
    assert (onnx_runner(tmp_path / "int8.onnx")(images) - expected).abs().max() < of_bias + 1e-6
    (stored,) = weights_of(tmp_path / "int8.onnx").values()
    assert stored.dtype == np.int8
    assert abs(stored).max() == levels


def test_onnx_runtime_computes_in_int8_what_the_network_says(tmp_path, images):
    model = random_model("resnet10t")
    network = quantise(model, images[:32].split(16), rounding="nearest")
    export_int8(network, tmp_path / "int8.onnx", (3, 48, 48), dynamic_batch=True)
    export_onnx(model, tmp_path / "model.onnx", (3, 48, 48), dynamic_batch=True)
    with torch.no_grad():
        spread = network(images).std().item()
    assert agreement(network, onnx_runner(tmp_path / "int8.onnx"), images).difference < 0.1 * spread
    assert 0 < agreement(model, network, images).difference < 0.2 * spread
    assert {array.dtype for array in weights_of(tmp_path / "int8.onnx").values()} == {np.dtype(np.int8)}
    assert (tmp_path / "int8.onnx").stat().st_size < 0.27 * (tmp_path / "model.onnx").stat().st_size
    made = kernels(tmp_path / "int8.onnx", tmp_path)
    assert (made.count("QLinearConv"), made.count("QGemm"), made.count("Conv")) == (14, 1, 0)


def test_layers_that_are_given_back_are_in_float(tmp_path, images):
    model = random_model("tf_mobilenetv3_small_minimal_100")  # pads by sizes that it asks its activations for
    precisions = {"conv_stem": "float", "classifier": "weights"}
    network = quantise(model, [images[:8]], "extremes", precisions)
    export_int8(network, tmp_path / "mixed.onnx", (3, 48, 48), dynamic_batch=True)
    weights = weights_of(tmp_path / "mixed.onnx").values()
    assert [array.shape for array in weights if array.dtype == np.float32] == [model.conv_stem.weight.shape]
    made = kernels(tmp_path / "mixed.onnx", tmp_path)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
    assert made.count("QLinearConv") == convolutions - 1
    assert "QGemm" not in made  # though its weights are in 8 bits


def test_a_channel_of_weights_of_zero_keeps_its_bias(tmp_path):
    """As BatchNorm's scale of 0, with which residual branches begin, leaves it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = 0.0, 1.5
    images = torch.rand(4, 3, 2, 2)
    network = quantise(model, [images], "extremes")
    export_int8(network, tmp_path / "int8.onnx", (3, 2, 2), dynamic_batch=True)
    assert agreement(network, onnx_runner(tmp_path / "int8.onnx"), images).difference < 1e-2
    assert agreement(model, onnx_runner(tmp_path / "int8.onnx"), images).difference < 0.05


def test_an_attention_network_is_quantised_too(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = quantise(model, [images])
    export_int8(network, tmp_path / "int8.onnx", (3, 32, 32), dynamic_batch=True)
    with torch.no_grad():
        spread = model(images).std()
    assert agreement(network, onnx_runner(tmp_path / "int8.onnx"), images).difference < 0.1 * spread
    assert kernels(tmp_path / "int8.onnx", tmp_path).count("MatMulIntegerToFloat") == 8


def test_layers_that_share_weights_have_ranges_each_of_its_own_and_are_stored_once(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU())
    with torch.no_grad():
        model[0].weight.mul_(5)
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    apart = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU())
    apart.load_state_dict(model.state_dict())
    x = torch.randn(40, 6)
    network, expected = quantise(model, x.split(20)), quantise(apart, x.split(20), rounding="nearest")
    assert network.quantisation.ranges == expected.quantisation.ranges
    assert "0.input" in network.quantisation.ranges
    assert torch.equal(network(x), expected(x))
    assert model[2].weight is model[0].weight
    export_int8(network, tmp_path / "int8.onnx", (torch.zeros(1, 6),), names=None, dynamic_batch=True)
    assert len(weights_of(tmp_path / "int8.onnx")) == 1
    torch.testing.assert_close(onnx_runner(tmp_path / "int8.onnx")(x), network(x), atol=0.05, rtol=0)
