import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from supernet import SearchSpace
from supernet.training.data import DataConfig
from supernet.training.data.batch import on
from supernet.training.data.folders import open_unlabelled
from supernet.training.data.image_data import open_unlabelled_images
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.features import FeatureConfig, Features, distil_features
from supernet.training.step import TrainConfig
from tests.vision_transformers import small_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs at several depths, of which nothing says what they show."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(20):
        place = folder / ("deep/er" if index % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(place / f"{index}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def one_resolution():
    return small_vit(num_classes=3, resolution=(16,), patch_size=(8,), depth=(2,))


def test_subnets_come_nearer_to_the_largest_ones_features(tmp_path):
    family = one_resolution()
    torch.manual_seed(0)
    net = family.supernet()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    examples = torch.randn(64, 3, 16, 16), torch.zeros(64, dtype=torch.long)
    classifier = net.get_parameter("head.weight").detach().clone()
    before = net.get_parameter("blocks.0.attn.qkv.weight").detach().clone()
    config = TrainConfig(epochs=12, batch_size=16, opt="adamw", lr=3e-2, warmup_epochs=0, random_subnets=1)
    data = TensorData(examples, examples, examples)
    distil_features(family, net, data, config, tmp_path, Execution(eval_epochs=0, log_steps=1))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = [line["losses"] for line in lines if "losses" in line]  # of the largest, a random one and the smallest
    assert losses[0][0] == pytest.approx(0, abs=1e-5)  # which begins as the teacher
    assert losses[-1][-1] < 0.5 * losses[0][-1]
    assert torch.equal(net.get_parameter("head.weight"), classifier)  # the projection is thrown away
    assert not torch.equal(net.get_parameter("blocks.0.attn.qkv.weight"), before)
    assert set(net.state_dict()) == set(family.supernet().state_dict())


def test_a_student_of_one_size_learns_the_features_of_another_network(tmp_path):
    family = one_resolution()
    torch.manual_seed(0)
    teacher = family.build(family.space.largest)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    teacher.reset_classifier(0)
    small = SearchSpace({name: (value,) for name, value in family.space.smallest.items()})
    student = dataclasses.replace(family, space=small)
    net = student.supernet()
    examples = torch.randn(64, 3, 16, 16), torch.zeros(64, dtype=torch.long)
    config = TrainConfig(epochs=6, batch_size=16, opt="adamw", lr=1e-2, warmup_epochs=0)
    data = TensorData(examples, examples, examples)
    execution = Execution(eval_epochs=0, log_steps=1)
    distil_features(student, net, data, config, tmp_path, execution, teacher=teacher)
    losses = [json.loads(line)["losses"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {len(each) for each in losses} == {1}
    assert losses[-1][0] < 0.7 * losses[0][0]
    assert net.get_parameter("head.weight").shape == (3, 24)


def test_the_loss_is_one_less_the_cosine():
    task = Features(2, small_vit().task)
    output, teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert task.distil(output, teacher, None).item() == pytest.approx(0.5)  # 0 and 1


def test_images_without_labels_are_found_wherever_they_lie(folder):
    found = open_unlabelled(str(folder))
    assert len(found) == 20
    assert set(found.targets) == {0}
    data = open_unlabelled_images(str(folder), DataConfig("folder"))
    images, labels = on(torch.device("cpu"), next(iter(data.training_batches(16, 4, 0, range(1)))))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0] * 4


@pytest.mark.parametrize(("place", "message"), [("nowhere", "no images at"), ("empty", "there are no images in")])
def test_a_place_without_images_is_refused(tmp_path, place, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_unlabelled(str(tmp_path / place))


def test_a_number_of_epochs_is_at_least_one():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        FeatureConfig(feature_epochs=0)


def test_a_command_goes_from_pretrained_features_to_labels(command, folder, tmp_path):

    weights = tmp_path / "weights.safetensors"
    family = one_resolution()
    safetensors.torch.save_file(family.supernet(seed=3).extract(family.space.largest).state_dict(), weights)
    sizes = {"embed_dim": [24, 32], "depth": [2], "num_heads": [2, 3, 4], "mlp_ratio": [1, 2], "head_dim": 8}
    options = json.dumps(sizes | {"resolution": [16], "patch_size": [8]})
    arguments = ["--recipe", "distil_features", "--pretrained", weights, "--unlabelled", folder, "--feature-epochs", 1]
    arguments += ["--space-options", options, "--dataset", "digits", "--epochs", 1, "--batch-size", 16, "--workers", 0]
    arguments += ["--warmup-epochs", 0, "--holdout", 0.95, "--eval-epochs", 0, "--amp", "none"]
    result = command("train", *arguments, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "0-features" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "supernet.safetensors").exists()
    again = command("train", "--resume", "--output", tmp_path / "run")
    assert again.returncode == 0, again.stderr


def test_the_teacher_gets_images_as_its_weights_want_them(folder, tmp_path, monkeypatch):
    seen = []

    def step(family, net, data, config, run_dir, execution, *, teacher, **others):
        batch = on(torch.device("cpu"), next(iter(data.training_batches(16, 4, 0, range(1)))))
        teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        teacher(batch[0])
        seen.append(batch[0])
        return net

    monkeypatch.setattr("supernet.training.features.train", step)
    family = one_resolution()
    config = DataConfig("folder", mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    images = open_unlabelled_images(str(folder), config)
    wanted = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    distil_features(family, family.supernet(), images, TrainConfig(), tmp_path, normalisation=wanted)
    distil_features(family, family.supernet(), images, TrainConfig(), tmp_path)
    (fed, given), (as_given, same) = seen[:2], seen[2:]
    pixels = given * torch.tensor(config.std).view(3, 1, 1) + torch.tensor(config.mean).view(3, 1, 1)
    assert torch.allclose(fed, (pixels - 0.5) / 0.5, atol=1e-5)
    assert not torch.allclose(fed, given, atol=0.1)
    assert torch.equal(as_given, same)
