import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from exits import ExitTask, exits_family, parts_of, with_exits
from exits.parts import measure_parts
from supernet.tasks import Classification
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train
from tests.small import small
from tests.vision_transformers import small_vit


def image(size: int = 32) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def vit() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes).eval()


MODELS = {
    "vit": (vit, ["blocks.0", "blocks.2"], 32),
    "resnet": (lambda: timm.create_model("resnet18", num_classes=5).eval(), ["layer1", "layer2.0", "layer3"], 64),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, num_classes=5, depths=(1, 1, 1, 1)
        ).eval(),
        ["layers.0", "layers.2"],
        56,
    ),
}


@pytest.mark.parametrize("name", ["vit", "resnet", pytest.param("swin", marks=pytest.mark.exhaustive)])
def test_parts_one_after_another_give_what_the_network_gives(name):
    create, after, size = MODELS[name]
    model = create()
    (images,) = image(size)
    with torch.no_grad():
        expected = model(images)
        network = with_exits(model, after, 5, (images,)).eval()
        logits = network(images)
        assert logits.shape == (2, len(after) + 1, 5)
        assert torch.equal(logits[:, -1], expected)
        carried = images
        *parts, last = parts_of(network)
        for exit, part in enumerate(parts):
            own, carried = part(carried)
            torch.testing.assert_close(own, logits[:, exit])
        torch.testing.assert_close(last(carried), expected)
        (only,) = parts_of(network, [1])
        torch.testing.assert_close(only(images), logits[:, 1])


def test_every_part_is_measured():
    network = with_exits(vit(), ["blocks.0", "blocks.2"], 5, image())
    found = measure_parts(network, image()[:1], rounds=1, runs=1)
    assert len(found.bodies_ms) == 3
    assert len(found.heads_ms) == 2
    assert min(*found.bodies_ms, *found.heads_ms) > 0


def test_modules_that_are_not_there_or_in_another_order_are_refused():
    with pytest.raises(ValueError, match=r"has no module 'blocks.9' to exit after; it has patch_embed"):
        with_exits(vit(), ["blocks.9"], 5, image())
    with pytest.raises(ValueError, match=r"in the order blocks.0, blocks.2"):
        with_exits(vit(), ["blocks.2", "blocks.0"], 5, image())


@pytest.mark.parametrize(
    ("weights", "factors"),
    [("depth", (1 / 6, 2 / 6, 3 / 6)), ("equal", (1 / 3, 1 / 3, 1 / 3)), ("internal", (0.5, 0.5, 0))],
)
def test_the_loss_weighs_exits(weights, factors):
    torch.manual_seed(0)
    output, labels = torch.randn(4, 3, 5), torch.tensor([0, 1, 2, 3])
    task = ExitTask(Classification(5, label_smoothing=0.0), weights)
    losses = [F.cross_entropy(output[:, exit], labels) for exit in range(3)]
    expected = sum(factor * loss for factor, loss in zip(factors, losses))
    torch.testing.assert_close(task.loss(output, (None, labels)), expected)


def test_exits_learn_from_the_teachers_last():
    torch.manual_seed(0)
    output, teacher = torch.randn(4, 2, 5), torch.randn(4, 3, 5)
    task, plain = ExitTask(Classification(5)), Classification(5)
    own = [plain.distil(output[:, exit], teacher[:, -1], None) for exit in range(2)]
    torch.testing.assert_close(task.distil(output, teacher, None), (own[0] + 2 * own[1]) / 3)


def test_metrics_are_those_of_every_exit():
    logits = torch.eye(3)[torch.tensor([[0, 0], [1, 2], [0, 1]])]  # [3, 2, 3]
    labels = torch.tensor([0, 1, 1])
    task = ExitTask(Classification(3))
    found = task.metrics(iter([logits[:2], logits[2:]]), iter([(None, labels[:2]), (None, labels[2:])]))
    assert found == {"accuracy": 2 / 3, "exit_1": 2 / 3, "exit_2": 2 / 3}
    assert next(iter(found)) == "accuracy"


@pytest.mark.parametrize("family", [small_vit, small])
def test_a_supernet_with_exits_equals_what_is_taken_out(family):
    after = ["blocks.0", "blocks.1"]
    family = exits_family(family(num_classes=5), after)
    net = family.supernet().eval()
    for arch in (family.space.largest, family.space.smallest):
        images = torch.randn(2, 3, *[family.resolution(arch)] * 2)
        model = net.extract(arch)
        assert torch.equal(net(images, arch), model(images))
        assert model(images).shape[1] == 3


def test_a_supernet_with_exits_trains_in_one_forward_pass(tmp_path):
    family = exits_family(small_vit(num_classes=2, resolution=(16,), patch_size=(8,), depth=(3,)), ["blocks.0"])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 16, 16, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long()
    examples = images + labels[:, None, None, None], labels
    data = TensorData(examples, examples, examples)
    config = TrainConfig(epochs=12, batch_size=16, opt="adamw", lr=1.6e-2, warmup_epochs=0, label_smoothing=0.0)
    net = train(family, family.supernet(), data, config, tmp_path, Execution(eval_epochs=0)).eval()
    logits = net(images + labels[:, None, None, None], family.space.largest)
    right = (logits.argmax(2) == labels[:, None]).float().mean(0)
    assert right.min() > 0.9
