import pytest
import torch

from supernet.training.data.tensors import TensorData

TRAIN = torch.arange(10.0), {"labels": torch.arange(10)}
DATA = TensorData(TRAIN, TRAIN, TRAIN)


def labels(batches):
    for values, more in batches:
        assert values.tolist() == more["labels"].tolist()
    return [more["labels"].tolist() for _, more in batches]


def test_every_epoch_is_a_permutation_that_follows_from_seed_and_step():
    assert DATA.steps_per_epoch(5) == 2
    steps = labels([*DATA.training_batches(None, 5, 7, range(6))])
    epochs = [steps[i] + steps[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert labels([*DATA.training_batches(None, 5, 7, range(3, 6))]) == steps[3:]
    assert labels([*DATA.training_batches(None, 5, 8, range(6))]) != steps


def test_processes_share_out_a_batch():
    (whole,) = labels([*DATA.training_batches(None, 4, 0, range(1))])
    parts = [labels([*DATA.training_batches(None, 4, 0, range(1), rank, 2)])[0] for rank in (0, 1)]
    assert parts == [whole[0::2], whole[1::2]]


def test_calibration_is_by_so_many_training_examples():
    (few,) = labels(DATA.calibration_batches(None, 4, 0))
    assert len(set(few)) == 4
    assert labels(DATA.calibration_batches(None, 4, 0)) == [few]
    assert [len(part) for part in labels(DATA.evaluation_batches(DATA.holdout, None, 4))] == [4, 4, 2]


def test_other_tensors_are_told_by_the_description():
    other = TensorData((TRAIN[0] + 1, TRAIN[1]), TRAIN, TRAIN)
    own, changed = DATA.description(), other.description()
    assert own["examples"] == changed["examples"] == {"train": 10, "holdout": 10, "test": 10}
    assert [own["digests"][name] == changed["digests"][name] for name in own["digests"]] == [False, True, True]


def test_a_batch_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="a batch of 11 is more than the 10 training examples"):
        DATA.steps_per_epoch(11)
