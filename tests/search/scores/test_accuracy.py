"""The examples that a search judges by: kept small, read by all, and judged by as if they had just been loaded."""

import pickle

import numpy as np
import pytest
import torch

from search.scores.accuracy import EvaluationBatches, SupernetAccuracy, SupernetScore, first_metric, resized
from search.scores.judges import RunBatches, resolutions, run_batches
from search.scores.teacher_guided import GuidanceConfig, TeacherGuided
from search.settings import SearchJob
from supernet.artifacts.runs import Job, Run
from supernet.evaluation import calibrated
from supernet.families import FAMILIES
from supernet.tasks import Task
from supernet.training.data import DataConfig, load_data, resize
from supernet.training.data.batch import joined
from supernet.training.data.pixels import Pixels
from tests.small import small


@pytest.fixture(scope="module")
def family():
    return FAMILIES["mobilenet_v3_micro"](num_classes=10)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig())


def loaded(data, size):
    """The examples as networks take them, all in memory."""
    return EvaluationBatches(
        joined(list(data.calibration_batches(size, 20, 0))),
        joined(list(data.evaluation_batches(data.holdout, size))),
    )


def test_pixels_are_a_quarter_and_judge_bit_for_bit_as_images_do(family, data):
    batches = RunBatches(data, 20, 0, None)
    kept = batches(16)
    assert [part[0].values.dtype for part in kept] == [torch.uint8, torch.uint8]
    assert batches(16) is kept
    net = family.supernet().eval()
    archs = [family.space.smallest, family.space.largest]
    sizes = {family.resolution(arch): loaded(data, family.resolution(arch)) for arch in archs}
    scores = [SupernetScore(net, family.task, source, family.resolution, 50) for source in (batches, sizes.__getitem__)]
    assert scores[0](archs) == scores[1](archs)


def test_images_of_one_resolution_are_resized_for_each_subnet(family, data):
    largest = max(resolutions(family))
    batches = RunBatches(data, 20, 0, 30, largest=largest)
    batches.load(resolutions(family))
    assert len({id(batches(size)) for size in resolutions(family)}) == 1
    assert batches(16).evaluation[0].values.shape == (30, 3, largest, largest)
    whole = loaded(data, largest)
    score = SupernetScore(family.supernet().eval(), family.task, batches, family.resolution)
    arch = family.space.smallest
    for batch, images in zip(batches(16), (whole.calibration[0], whole.evaluation[0][:30])):
        (inputs,) = next(iter(score._calls(batch, arch)))
        assert torch.equal(inputs, resize(images, family.resolution(arch)))
    seen = []

    def candidate(arch, inputs):
        seen.append(torch.cat([images for (images,) in inputs]))
        return family.build(arch)

    guided = TeacherGuided(candidate, batches, family.resolution, None, largest, GuidanceConfig())
    guided.calibrated(arch)
    assert torch.equal(seen[0], resize(whole.calibration[0], family.resolution(arch)))


def test_a_job_says_how_many_images_and_at_which_resolution_they_are_kept(family, data):
    run = Run(family, None, data, Job("mobilenet_v3_micro", "{}", DataConfig()))
    asked = ({}, {"images": None}, {"images": 7}, {"images": 7, "resize_images": True})
    jobs = [SearchJob(calibration_images=5, **options) for options in asked]
    images = [run_batches(job, run).images(16).images.values for job in jobs]
    assert [len(own) for own in images] == [144, 144, 7, 7]
    assert images[2].shape[-1] == 16
    assert images[3].shape[-1] == max(resolutions(family))


def test_a_pickle_has_the_pixels_as_buffers_which_are_not_copied(data):
    batches = RunBatches(data, 20, 0, None)
    pixels = batches(32).evaluation[0]
    buffers = []
    pickled = pickle.dumps(batches, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < pixels.values.nbytes
    found = pickle.loads(pickled, buffers=buffers)(32).evaluation[0]
    assert found.values.data_ptr() == pixels.values.data_ptr()
    to_be_read_only = [bytes(buffer) for buffer in buffers]
    found = pickle.loads(pickled, buffers=to_be_read_only)
    assert found._known.keys() == {32}
    assert torch.equal(found(32).evaluation[0].normalised(), pixels.normalised())


class Likeness(Task):
    """How near outputs are to the images."""

    def metrics(self, outputs, batches):
        pairs = list(zip(outputs, batches))
        self.parts = len(pairs)
        return {"score": float(-sum((output - images).abs().sum() for output, images in pairs))}


def test_metrics_see_images_as_networks_do_part_by_part():
    pixels = Pixels(torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    output, task = torch.zeros(5, 3, 2, 2), Likeness()
    in_parts = first_metric(task, output, pixels, part=2)
    assert task.parts == 3
    assert in_parts == pytest.approx(first_metric(task, output, pixels.normalised()))
    assert task.parts == 1


def of_noise(bf16):
    family = small()
    images = torch.randn(2, 40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    score = SupernetAccuracy(family.supernet(), resized(*images, labels), family.resolution, 10)
    score.bf16 = bf16
    return score, [family.space.smallest, family.space.largest, family.space.sample(np.random.default_rng(0))]


def test_in_bfloat16_a_subnet_makes_of_images_what_the_extracted_one_does(monkeypatch):
    monkeypatch.setattr("search.scores.accuracy.computes_bf16", lambda device: True)
    score, archs = of_noise(bf16=True)
    for index, judged in score.judged(archs):
        assert not torch.is_autocast_enabled("cpu")  # between values
        (calibration,), (images, labels) = score.batches(score.resolution(archs[index]))
        with torch.autocast("cpu", torch.bfloat16):
            model = calibrated(score.net, archs[index], calibration.split(10))
            with torch.inference_mode():
                logits = torch.cat([model(batch) for batch in images.split(10)])
        assert logits.dtype == torch.bfloat16
        np.testing.assert_array_equal(judged.per_example, (logits.float().argmax(1) == labels).numpy())


def test_bfloat16_is_refused_where_it_is_slow(monkeypatch):
    monkeypatch.setattr("search.scores.accuracy.computes_bf16", lambda device: False)
    score, archs = of_noise(bf16=True)
    with pytest.raises(ValueError, match="bf16 is slower than float32 on this cpu, which lacks instructions for it"):
        score(archs)
