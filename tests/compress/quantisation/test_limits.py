import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from compress.quantisation import Quantisation, activation_ranges, export_int8
from compress.quantisation.limits import Candidates, Drop, Limits, drop


@pytest.fixture(scope="module")
def digits():
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    return images.float().reshape(-1, 1, 8, 8) / 16, labels


@pytest.fixture(scope="module")
def model(digits):
    """Trained, and then with a channel that is large where the others are small, which int8 cannot tell apart."""
    images, labels = digits[0][:1000], digits[1][:1000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    with torch.no_grad():
        channel = model[1](model[0](images)).mean((0, 2, 3)).argmax()
        model[0].weight[channel] *= 2000
        model[0].bias[channel] *= 2000
        model[2].weight[:, channel] /= 2000
    return model.eval()


@pytest.fixture
def candidates(model, digits, tmp_path):
    images, labels = digits
    ranges = activation_ranges(model, [images[:200]], "extremes")

    def write(network, path):
        export_int8(network, path, (1, 8, 8), dynamic_batch=True)

    return Candidates(model, Quantisation(ranges), [(images[1000:1400], labels[1000:1400])], write, tmp_path)


def test_the_layer_that_int8_ruins_gets_its_float_back(candidates):
    int8 = candidates({})
    assert int8.drop.points > 5
    chosen, found = candidates.within(Limits(accuracy_drop=0.5), lambda path: 1.0)
    assert chosen.drop.points <= 0.5
    assert chosen.network.quantisation.precisions["2"] in ("weights", "float")
    worst = max(found, key=lambda own: own.divergence)
    assert (worst.layer, worst.precision) == ("2", "int8")
    assert len(chosen.network.quantisation.precisions) <= 2


def test_int8_is_kept_where_it_is_good_enough(candidates):
    chosen, found = candidates.within(Limits(accuracy_drop=99.0), lambda path: 1.0)
    assert (dict(chosen.network.quantisation.precisions), found) == ({}, [])


def test_within_bytes_alone_the_drop_is_lowered_until_it_cannot_be_told(candidates):
    int8 = candidates({})
    chosen, _ = candidates.within(Limits(stored_bytes=int8.bytes + 200), lambda path: 1.0)
    assert chosen.bytes <= int8.bytes + 200
    assert chosen.drop.points <= chosen.drop.standard_error
    assert list(chosen.network.quantisation.precisions) == ["2"]  # the one that int8 ruins, and no other


def test_bytes_are_not_used_up_where_int8_is_as_good_as_float(candidates):
    int8 = candidates({"2": "float"})._replace(drop=Drop(0.3, 0.4, 0.99))
    candidates._made[frozenset()] = int8
    chosen, found = candidates.within(Limits(stored_bytes=1e6), lambda path: 1.0)
    assert (chosen, found) == (int8, [])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(stored_bytes=100), r"in int8 the network takes \d+ bytes, more than stored_bytes=100"),
        (Limits(accuracy_drop=-50.0), r"the drop is -?\d+\.\d+ points at least"),
        (Limits(accuracy_drop=99.0, milliseconds=0.5), r"takes 1 ms, more than milliseconds=0\.5"),
    ],
)
def test_limits_that_nothing_keeps_within_are_told(candidates, limits, message):
    with pytest.raises(ValueError, match=message):
        candidates.within(limits, lambda path: 1.0)


def test_limits_are_read():
    assert Limits.of(["accuracy_drop=0.5", "stored_bytes=1e6"]) == Limits(0.5, 1e6)
    with pytest.raises(ValueError, match=r"NAME=VALUE, such as accuracy_drop=0\.5, not 'accuracy_drop'"):
        Limits.of(["accuracy_drop"])
    with pytest.raises(ValueError, match="accuracy_drop, stored_bytes, milliseconds, each of a number, not 'macs=3'"):
        Limits.of(["macs=3"])


def test_the_drop_is_paired():
    labels = torch.zeros(4, dtype=torch.int64)
    expected = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    found = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    own = drop(expected, found, [(torch.zeros(4), labels)])
    assert own.points == 0
    assert own.standard_error == pytest.approx(100 * (2 / 3) ** 0.5 / 2)  # of 0, 100, 0, -100
    assert own.told_alike == 0.5
