import copy
from collections import OrderedDict
from unittest.mock import patch

import pytest
import torch
from torch import nn

from search.scores.accuracy import SupernetAccuracy, first_metric, resized
from search.scores.teacher_guided import FromSupernet
from supernet.activation_memory import examples_within
from supernet.artifacts import runs
from supernet.calibration import calibrate
from supernet.evaluation import calibrated, calibrated_subnet
from supernet.families import from_model
from supernet.space import SearchSpace
from supernet.supernet import Supernet
from supernet.tasks import Classification
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

# Whose statistics a supernet has


def small(width=8):
    conv, head = nn.Conv2d(3, width, 3, bias=False), nn.Conv2d(width, 16, 3, bias=False)
    layers = OrderedDict(conv=conv, bn=nn.BatchNorm2d(width), act=nn.ReLU(), head=head, bn2=nn.BatchNorm2d(16))
    return nn.Sequential(layers | OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(16, 10)))


def published():
    """`small` with weights and statistics that some training has left."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small()
        for layer in (model.bn, model.bn2):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def pretrained():
    return from_model(small, torch.empty(1, 3, 8, 8, device="meta"), (0.5, 1.0), pretrained=published)


@pytest.fixture
def images():
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def keeps_its_statistics(net, arch, images):
    """Whether the calibrated subnet has the supernet's."""
    found, own = calibrated_subnet(net, arch, 8, images).state_dict(), net.extract(arch).state_dict()
    return all(torch.equal(found[name], own[name]) for name in own if "running" in name)


def test_the_pretrained_network_itself_keeps_its_statistics(pretrained, images):
    net, largest = pretrained.supernet(), pretrained.space.largest
    assert net.statistics_of == largest
    model = calibrated_subnet(net, largest, 8, images)
    torch.testing.assert_close(model(images), published().eval()(images))  # the channels are in another order
    assert not model.training
    assert keeps_its_statistics(net, dict(largest), images)
    assert not keeps_its_statistics(net, pretrained.space.smallest, images)
    assert keeps_its_statistics(copy.deepcopy(net), largest, images)


def test_the_search_judges_it_as_it_is_taken_out(pretrained, images):
    net, labels = pretrained.supernet(), torch.arange(12) % 10
    archs = [pretrained.space.largest, pretrained.space.smallest, pretrained.space.largest]
    found = SupernetAccuracy(net, resized(images, images, labels), pretrained.resolution, batch_size=5)(archs)
    subnets = [calibrated_subnet(net, arch, 8, images) for arch in archs]
    expected = [first_metric(Classification(), subnet(images), (images, labels)) for subnet in subnets]
    assert found == expected
    guided = FromSupernet(net)(archs[0], images.split(5))
    assert torch.equal(guided(images), net.extract(archs[0]).eval()(images))


def test_what_the_images_are_known_to_lack_is_taken_off_in_other_subnets(images):
    """Behind the same first layer, dark images give every subnet the statistics of all images there."""

    def build(width=8):
        layers = nn.BatchNorm2d(3), nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 10, 1)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def whole():
        model = build()
        calibrate(model, [images])
        return model

    family = from_model(lambda: build(), images[:1].to("meta"), (0.5, 1.0), pretrained=whole)
    net = family.supernet()
    dark = images[:4] ** 2
    exact = calibrated_subnet(net, family.space.smallest, 8, images)
    found = calibrated_subnet(net, family.space.smallest, 8, dark)
    uncorrected = net.extract(family.space.smallest)
    calibrate(uncorrected, [dark])
    torch.testing.assert_close(found[0].running_mean, exact[0].running_mean)
    torch.testing.assert_close(found[0].running_var, exact[0].running_var)
    assert (uncorrected[0].running_mean - exact[0].running_mean).abs().min() > 0.1


def train_one_step_by_hand(net, family, tmp_path):
    net.train()(torch.zeros(4, 3, 8, 8), family.space.smallest)


def load_weights(net, family, tmp_path):
    net.load_state_dict(net.state_dict())


def train_with_a_moving_average(net, family, tmp_path):
    data = load_data(DataConfig(color_jitter=0.0))
    config = TrainConfig(epochs=1, warmup_epochs=0, batch_size=256, ema_decay=0.9)
    return train(family, net, data, config, tmp_path, Execution(eval_epochs=0))


@pytest.mark.parametrize("change", [train_one_step_by_hand, load_weights, train_with_a_moving_average])
def test_a_supernet_that_was_trained_on_is_recalibrated(pretrained, images, tmp_path, change):
    net = pretrained.supernet()
    net = change(net, pretrained, tmp_path) or net
    assert net.statistics_of is None
    assert not keeps_its_statistics(net.eval(), pretrained.space.largest, images)


def test_a_supernet_that_began_from_nothing_is_recalibrated(pretrained, images):
    net = pretrained.supernet(pretrained=False)
    assert net.statistics_of is None
    assert not keeps_its_statistics(net, pretrained.space.largest, images)


def test_evaluation_and_gradients_in_eval_mode_leave_the_statistics_right(pretrained, images):
    net = pretrained.supernet().eval()
    net(images, pretrained.space.smallest).sum().backward()
    assert net.statistics_of == pretrained.space.largest


def test_the_number_of_calibration_images_goes_by_the_classes():
    assert TrainConfig().images_to_calibrate(10) == TrainConfig().images_to_calibrate(1000) == 1000
    assert TrainConfig().images_to_calibrate(21841) == 21841
    assert TrainConfig(calibration_images=5).images_to_calibrate(21841) == 5
    with pytest.raises(ValueError, match="calibration_images is at least 1, not 0"):
        TrainConfig(calibration_images=0)


def test_a_run_says_how_many_images_its_subnets_are_calibrated_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_train", lambda job, family, *rest: family.supernet())
    job = runs.Job(data=DataConfig())
    made = runs.run_job(job, tmp_path)
    assert made.job.train.calibration_images == 1000
    assert runs.load_run(tmp_path).job == made.job
    begun = runs.Job(data=job.data, train=TrainConfig(calibration_images=1000))
    runs.run_job(begun, tmp_path, resume=True)  # a run that was begun when 1000 was the default goes on
    runs.run_job(job, tmp_path, resume=True)


EACH = 4 * (16 * (3 + 4 + 4) + 2 * 4)  # bytes: an image of 4 pixels, both layers' outputs, what torch normalises by


@pytest.fixture(scope="module")
def normalised():
    """A network of one convolution and one BatchNorm layer."""
    return Supernet(
        SearchSpace({"width": (2, 4)}),
        lambda arch: nn.Sequential(nn.Conv2d(3, arch["width"], 1), nn.BatchNorm2d(arch["width"])),
    )


def test_a_budget_counts_what_is_alive_at_once(normalised):
    image = torch.empty(7, 3, 4, 4)
    assert examples_within(normalised, image, 100 * EACH) == 100
    with patch("supernet.activation_memory._peak", side_effect=AssertionError):  # known by now
        assert examples_within(normalised, image.repeat(7, 1, 1, 1), 100 * EACH - 1) == 99


def test_recalibration_holds_no_more_images_than_the_budget_allows(normalised, monkeypatch):
    held, sizes = [0], []

    def batches():
        for _ in range(30):
            held[0] += 10
            yield torch.randn(10, 3, 4, 4)

    def watched(model, some, *rest):
        sizes.append((sum(map(len, some)), held[0] - sum(size for size, _ in sizes)))
        return calibrate(model, some, *rest)

    monkeypatch.setattr("supernet.evaluation.calibrate", watched)
    budget = 75 * EACH
    calibrated(normalised, normalised.space.largest, batches(), budget)
    assert [size for size, _ in sizes] == [75, 75, 75, 75]
    assert max(ahead for _, ahead in sizes) <= 2 * 75 + 10
    sizes.clear()
    held[0] = 0
    calibrated(normalised, normalised.space.largest, batches(), budget // 75)  # too little for statistics
    assert [size for size, _ in sizes] == [64, 64, 64, 54, 54]


def test_a_network_that_does_not_run_on_zeros_is_calibrated_at_once(caplog):
    class Picky(nn.BatchNorm2d):
        def forward(self, x):
            if not x.any():
                raise RuntimeError("nothing to see")
            return super().forward(x)

    net = Supernet(
        SearchSpace({"width": (2, 4)}),
        lambda arch: nn.Sequential(nn.Conv2d(3, arch["width"], 1, bias=False), Picky(arch["width"])),
    )
    model = calibrated(net, net.space.largest, torch.randn(200, 3, 4, 4).split(50), 1)
    assert model[1].running_var.min() > 0
    assert "not limited" in caplog.text
