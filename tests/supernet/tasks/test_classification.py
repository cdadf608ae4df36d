import pytest
import torch
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from supernet import Arch
from supernet.evaluation import evaluate
from supernet.tasks import Classification
from supernet.training.data import resize

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [0.0, 0.5, 3.0]])
BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 0, 2])


def test_labels_are_smoothed_where_a_network_learns_and_not_where_subnets_are_compared():
    task = Classification(3, label_smoothing=0.3)
    assert task.loss(LOGITS, BATCH) == F.cross_entropy(LOGITS, BATCH[1], label_smoothing=0.3)
    assert task.validation_loss(LOGITS, BATCH) == F.cross_entropy(LOGITS, BATCH[1])
    assert task.loss(LOGITS, BATCH) != task.validation_loss(LOGITS, BATCH)


def test_a_student_learns_in_either_way():
    taught = LOGITS.flip(0)
    assert Classification(temperature=2.0).distil(LOGITS, taught, BATCH) == kl_divergence(LOGITS, taught, 2.0)
    alpha = Classification(distillation="adaptive_alpha").distil(LOGITS, taught, BATCH)
    assert alpha == adaptive_alpha_divergence(LOGITS, taught)


def test_accuracy_is_over_all_batches():
    labels = BATCH[1]
    parts = [(None, labels[:1]), (None, labels[1:])]
    assert Classification().metrics([LOGITS[:1], LOGITS[1:]], parts) == {"accuracy": 3 / 4}


def test_accuracy_is_the_mean_over_examples_that_are_right():
    assert Classification().per_example(LOGITS, BATCH).tolist() == [True, True, False, True]


def test_outputs_and_batches_are_gone_through_side_by_side():
    running = []

    class Counting(torch.nn.Linear):
        def forward(self, x):
            running.append(len(x))
            return super().forward(x)

    class Watching(Classification):
        def metrics(self, outputs, batches):
            seen = [len(running) for _ in zip(outputs, batches)]
            return {"seen": seen}

    batches = [(torch.zeros(2, 4), torch.zeros(2))] * 3
    assert evaluate(Counting(4, 3), Watching(), batches)["seen"] == [1, 2, 3]


def test_images_have_the_resolution_of_their_subnet():
    images = BATCH[0]
    for arch, task, size in [
        (Arch({"resolution": 6}), Classification(), 6),
        (Arch({"resolution": 6}), Classification(resolution=lambda arch: 4), 4),
        (Arch({"width": 6}), Classification(), 8),
        (None, Classification(resolution=lambda arch: 4), 8),
    ]:
        assert torch.equal(task.inputs(BATCH, arch)[0], resize(images, size))


def test_frozen_logits_are_without_gradient_and_in_single_precision():
    frozen = Classification().freeze(LOGITS.double().requires_grad_() * 2)
    assert (frozen.dtype, frozen.requires_grad) == (torch.float32, False)


def test_what_a_network_cannot_learn_from_is_refused():
    task = Classification(3, in_chans=3)
    task.check_batch(BATCH)
    with pytest.raises(ValueError, match="labels are 0 to 2, but there are 2 classes"):
        Classification(2).check_batch(BATCH)
    with pytest.raises(ValueError, match=r"\[4, 8, 8\] of torch.float32, but this space takes floating point \[N, 3"):
        task.check_batch((BATCH[0][:, 0], BATCH[1]))
    with pytest.raises(ValueError, match="the model gives logits of 4 classes, and its family says 3"):
        task.check_output(torch.zeros(2, 4))


def test_guessing_is_known_by_the_classes():
    assert Classification(10).uninformed_loss == F.cross_entropy(torch.zeros(1, 10).double(), torch.tensor([3])).item()
    assert (Classification(10).chance, Classification().chance) == (0.1, None)
