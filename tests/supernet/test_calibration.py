import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from supernet.calibration import Pooled, Reference, calibrate, corrected, references
from supernet.families import FAMILIES
from tests.elsewhere import RAN


@pytest.fixture(scope="module")
def family():
    return FAMILIES["mobilenet_v3_micro"]()


@pytest.fixture
def images():
    return torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def statistics_of_one_batch(model, images):
    reference = copy.deepcopy(model)
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        reference.train()(images)
    return reference.state_dict()


@pytest.mark.parametrize("sizes", [[40], [20, 20], [1, 7, 30, 2], [1] * 40])
def test_statistics_are_those_of_one_big_batch_however_it_is_split(family, images, sizes):
    model = family.supernet().extract(family.space.largest).eval()
    expected = statistics_of_one_batch(model, images)
    calibrate(model, images.split(sizes))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=0)
            deviation = tensor.sqrt()
        if name.endswith("running_mean"):
            mean = name, tensor
        if name.endswith("running_var"):  # a mean is as exact as the values that it averages
            error = (mean[1] - expected[mean[0]]).abs() / deviation
            assert error.max() < 1e-5, mean[0]


def test_a_gpu_takes_the_moments_of_all_images_at_a_time(family, images, elsewhere, monkeypatch):
    net = family.supernet()
    expected = net.extract(family.space.largest).eval()
    calibrate(expected, images.split(20))
    operations = []
    for size in (1, 2**30):
        monkeypatch.setattr("supernet.calibration.BYTES_IN_CACHE", size)
        model = net.extract(family.space.largest).eval().to(elsewhere)
        RAN.clear()
        calibrate(model, [batch.to(elsewhere) for batch in images.split(20)])
        operations.append(RAN["aten::mean.dim"])
        for name, tensor in model.cpu().state_dict().items():
            torch.testing.assert_close(tensor, expected.state_dict()[name])
    assert operations[0] == operations[1]


def test_in_double_precision_the_statistics_are_equal_to_rounding(family, images):
    model = family.supernet().extract(family.space.smallest).double().eval()
    images = images.double()
    expected = statistics_of_one_batch(model, images)
    calibrate(model, images.split(9))
    for name, tensor in model.state_dict().items():
        if "running" in name:
            # moments of a batch are taken in single precision
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_weights_mode_supernet_and_other_subnets_stay_as_they_are(family, images):
    net = family.supernet()
    shared = copy.deepcopy(net.state_dict())
    arch = family.space.smallest
    first, second = net.extract(arch).train(), net.extract(arch)
    before = copy.deepcopy(first.state_dict())
    calibrate(first, [images])
    assert all(torch.equal(tensor, shared[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.state_dict().items())
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert all(module.training for module in first.modules())


def test_a_hand_worked_layer():
    layer = nn.BatchNorm1d(1)
    calibrate(layer, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
    assert layer.running_mean.item() == pytest.approx(3.0)
    assert layer.running_var.item() == pytest.approx(7.0)  # ((1-3)^2 + (2-3)^2 + (6-3)^2) / (3 - 1)


def test_a_network_without_batch_norm_needs_nothing():
    calibrate(nn.Linear(2, 2), [])


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(nn.BatchNorm1d(1), [])
    with pytest.raises(ValueError, match="more than one image"):
        calibrate(nn.BatchNorm1d(1), [torch.ones(1, 1)])


def test_what_one_batch_raises_is_raised(images):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 24 * 24, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        calibrate(model, [images, images[..., :12]])


def test_torch_keeps_its_threads(images):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        calibrate(nn.BatchNorm2d(3), images.split(10))
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:  # in threads to come as well
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_layers_without_running_statistics_are_left_alone(images):
    plain, counted = nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)
    calibrate(nn.Sequential(plain, counted), [images])
    assert plain.running_mean is None
    normalised = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(counted.running_mean, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(counted.running_var, normalised.var((0, 2, 3)), rtol=1e-3, atol=0)
    assert calibrate(nn.BatchNorm2d(3, track_running_stats=False), []).outputs == []


class Branches(nn.Module):
    """Takes images that are brighter than others another way."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bright(x) if x.mean() > 0.5 else self.dark(x)


def test_layers_that_no_image_reaches_keep_what_they_have(images):
    model = Branches().eval()
    calibrate(model, [0.5 + images / 2, 0.4 + images / 2])
    assert torch.equal(model.dark.running_mean, torch.zeros(3))
    assert torch.equal(model.dark.running_var, torch.ones(3))
    torch.testing.assert_close(model.bright.running_mean, 0.45 + images.mean((0, 2, 3)) / 2)


def test_batches_that_go_different_ways_are_refused(images):
    with pytest.raises(ValueError, match=r"different ways through the network, and not all reach .*'(dark|bright)'"):
        calibrate(Branches(), [0.5 + images / 2, images / 2])
    passing_by = Branches()
    passing_by.dark = nn.Identity()
    with pytest.raises(ValueError, match="not all reach the BatchNorm layer 'bright'"):  # waits for none that is done
        calibrate(passing_by, [0.5 + images / 2, images / 2])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (20, 3)),
        (nn.BatchNorm1d(3), (20, 3, 7)),
        (nn.BatchNorm3d(3), (20, 3, 2, 3, 4)),
        (nn.BatchNorm2d(3, momentum=None), (20, 3, 4, 4)),
        (nn.BatchNorm2d(3, affine=False), (20, 3, 4, 4)),
        (nn.SyncBatchNorm(3), (20, 3, 4, 4)),
    ],
)
def test_all_kinds_of_batch_norm(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    calibrate(layer, x.split(7))
    dims = [0, *range(2, x.dim())]
    torch.testing.assert_close(layer.running_mean, x.mean(dims), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, x.var(dims), rtol=1e-5, atol=0)


# More images than there is memory for


def test_chunks_of_one_layer_are_pooled_exactly():
    layer, pooled = nn.BatchNorm1d(1), Pooled()
    for chunk in ([[1.0], [2.0]], [[6.0], [3.0], [8.0]]):
        pooled.add(calibrate(layer, [torch.tensor(chunk)]).statistics)
    pooled.put()
    assert layer.running_mean.item() == pytest.approx(4.0)
    assert layer.running_var.item() == pytest.approx(8.5)  # (9 + 4 + 4 + 1 + 16) / (5 - 1)


def test_a_single_chunk_is_exact_bit_for_bit(family, images):
    models = [family.supernet().extract(family.space.smallest).eval() for _ in range(2)]
    calibrate(models[0], images.split(9))
    found = calibrate(models[1], images.split(9))
    for layer in found.statistics:
        layer.reset_running_stats()
    pooled = Pooled()
    pooled.add(found.statistics)
    pooled.put()
    for ours, others in zip(models[0].buffers(), models[1].buffers()):
        assert torch.equal(ours, others)


@pytest.mark.exhaustive  # ten seconds of convolutions
def test_larger_chunks_are_nearer_to_all_images_and_the_first_layer_has_theirs(family):
    images = torch.rand(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    exact = family.supernet().extract(family.space.smallest).eval()
    layers = list(calibrate(exact, [images]).statistics)
    errors = []
    for size in (4, 16, 32):
        model, pooled = family.supernet().extract(family.space.smallest).eval(), Pooled()
        for chunk in images.split(size):
            pooled.add(calibrate(model, [chunk]).statistics)
        pooled.put()
        own = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        torch.testing.assert_close(own[0].running_var, layers[0].running_var, rtol=1e-5, atol=0)
        logs = [(ours.running_var / layer.running_var).log() for ours, layer in zip(own, layers)]
        errors.append(torch.cat(logs).square().mean().sqrt())
    assert errors[0] > 2 * errors[1] > 2 * errors[2] > 0


# Corrected by what is known of another network


def column(*values):
    return torch.tensor(values).double()[:, None]


def test_a_hand_worked_correction():
    """Two images of means 10 and 14 there, 5 and 9 here, without variance of their own but 12 more here for the second;
    there they are known to be 2 too bright and to vary too little."""
    there = Reference(torch.tensor([10.0]).double(), torch.tensor([9.0]).double(), column(10, 14), column(0, 8))
    # m0 = 12, squared deviations u0 = 4, 12, v0 = 8;   m = 7, u = 4, 16, v = 10;   eps = 1
    a = ((2 * 2 * 2) / (11 * 9) ** 0.5) / ((2 * 2 * 2) / 9)
    b = ((2 * 4 * 6) / (11 * 9)) / ((2 * 4 * 4) / 9**2)
    assert a < 1 < b  # so b counts as 1
    mean, variance = corrected(column(5, 9), column(0, 12), there, eps=1.0)
    assert mean.item() == pytest.approx(7 + a * (11 / 9) ** 0.5 * (10 - 12))
    assert variance.item() == pytest.approx(11 * 10 / 9 - 1)
    _, variance = corrected(column(5, 9), column(0, 2), there, eps=1.0)  # u = 4, 6, v = 5
    b = ((2 * 1 * 4) / (6 * 9)) / ((2 * 4 * 4) / 9**2)
    assert b < 1
    assert variance.item() == pytest.approx(6 * (10 / 9) ** b - 1)


def test_images_that_deviate_otherwise_than_in_the_reference_are_not_corrected():
    there = Reference(torch.tensor([0.0]).double(), torch.tensor([99.0]).double(), column(1, 3), column(0, 2))
    mean, variance = corrected(column(3, 1), column(2, 0), there, eps=1e-5)
    assert (mean.item(), variance.item()) == pytest.approx((2, 2))


def test_a_correction_by_linear_regression_takes_off_all_that_the_channels_have_in_common():
    """What is half of the reference plus noise of its own gets half of the reference's error off."""
    draw = torch.Generator().manual_seed(0)
    common, own = torch.randn(2, 400, 50, generator=draw).double()
    there = Reference(torch.full((50,), 0.5).double(), torch.ones(50).double(), common, torch.zeros(400, 50).double())
    here = 0.5 * common + own
    mean, _ = corrected(here, torch.zeros_like(here), there, eps=1e-5)
    torch.testing.assert_close(mean, here.mean(0) + 0.5 * (0.5 - common.mean(0)), rtol=0, atol=0.06)


def test_a_variance_is_not_below_zero():
    there = Reference(*torch.zeros(2, 1).double(), column(1, 3), column(0, 2))
    assert corrected(column(1, 3), column(0, 2), there, eps=0.5)[1].item() == 0


@pytest.mark.parametrize("sizes", [[40], [7, 30, 3]])
def test_the_network_that_the_references_are_of_gets_its_own_statistics_back(family, images, sizes):
    model = family.supernet().extract(family.space.largest).eval()
    calibrate(model, [images])
    before = copy.deepcopy(model.state_dict())
    some = (images**2).split(sizes)  # other images, darker ones
    layers = dict(model.named_modules())
    found = references(model, some)
    assert found.keys() == {name for name, layer in layers.items() if isinstance(layer, nn.BatchNorm2d)}
    first = next(iter(found.values()))
    assert (first.mean - first.image_means.mean(0)).abs().max() > 0.05
    outputs, _ = calibrate(model, some, {layers[name]: reference for name, reference in found.items()})
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(outputs), model(torch.cat(some)), rtol=1e-4, atol=1e-4)


def test_references_are_of_the_statistics_that_a_network_runs_with():
    """Not of those that it would have if it were calibrated: a layer sees what the layers before it make of images."""
    first, second = nn.BatchNorm1d(1, eps=0, affine=False), nn.BatchNorm1d(1)
    first.running_mean.fill_(1)
    first.running_var.fill_(4)
    x = torch.tensor([[3.0], [5.0], [13.0]])
    found = references(nn.Sequential(first, second).eval(), [x[:1], x[1:]])
    assert [tensor.flatten().tolist() for tensor in found["0"]] == [[1], [4], [3, 5, 13], [0, 0, 0]]
    assert [tensor.flatten().tolist() for tensor in found["1"]] == [[0], [1], [1, 2, 6], [0, 0, 0]]
