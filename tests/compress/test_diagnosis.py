"""Diagnoses of networks whose costs are worked out by hand."""

import pytest
import torch
from torch import nn

from compress.advice import advise
from compress.diagnosis import diagnose
from compress.diagnosis_record import plot_roofline, read_record, record, write_record
from compress.roofline import Roofline

PIXELS = 16 * 16
SIZE = (3, 16, 16)
# a million MACs and a million bytes a millisecond
EVEN = Roofline(1e9, {1: 1e9})


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def test_layers_by_hand():
    """Intensities of a full, a depthwise and a pointwise convolution."""
    found = diagnose(network(), SIZE, EVEN)
    full, depthwise, pointwise = found.layers[:3]
    assert (full.macs, full.moved_bytes) == (27 * 16 * PIXELS, 4 * (19 * PIXELS + 27 * 16 + 16))
    assert (depthwise.macs, depthwise.moved_bytes) == (9 * 16 * PIXELS, 4 * (32 * PIXELS + 9 * 16))
    assert (pointwise.macs, pointwise.moved_bytes) == (16 * 32 * PIXELS, 4 * (48 * PIXELS + 16 * 32))
    for layer in (full, depthwise, pointwise):
        assert layer.intensity == pytest.approx(2 * layer.macs / layer.moved_bytes)
        assert layer.bound_ms == pytest.approx(1e-6 * max(layer.macs, layer.moved_bytes))
    # 2 FLOP a byte is where the two roofs meet
    assert [layer.bound_by for layer in (full, depthwise, pointwise)] == ["compute", "compute", "compute"]
    assert depthwise.intensity == pytest.approx(2.22, abs=0.01)
    half = Roofline(1e9, {1: 0.8e9})
    assert [layer.bound_by for layer in diagnose(network(), SIZE, half).layers[:3]] == [
        "compute",
        "bandwidth",
        "compute",
    ]


def test_totals_are_those_of_the_layers():
    found = diagnose(network(), SIZE, Roofline(1e9, {1: 1e9}, overhead_ms=0.5), bits=8)
    assert found.bound_ms == pytest.approx(sum(layer.bound_ms for layer in found.layers))
    assert found.estimate_ms == pytest.approx(found.bound_ms + 0.5 * len(found.layers))
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.bottlenecks == ("overhead",)
    assert found.activation_bytes == 48 * PIXELS  # the pointwise convolution
    assert found.peak_layers == ("3", "4")
    assert found.stored_bytes == 27 * 16 + 9 * 16 + 16 * 32 + 320 + 4 * (32 + 10)


@pytest.mark.parametrize(
    ("limits", "bottlenecks"),
    [
        ({"activation_bytes": 40 * PIXELS}, ("memory", "compute")),
        ({"stored_bytes": 1000, "activation_bytes": 47 * PIXELS}, ("flash", "memory", "compute")),
        ({"latency_ms": 1e-3, "stored_bytes": 1000}, ("compute", "flash")),
        ({"stored_bytes": 2000}, ("compute",)),
    ],
)
def test_what_is_exceeded_most_comes_first(limits, bottlenecks):
    assert diagnose(network(), SIZE, EVEN, 8, limits).bottlenecks == bottlenecks


@pytest.mark.parametrize(("limits", "message"), [({"ram": 1}, "no limit 'ram'"), ({"stored_bytes": 0}, "positive")])
def test_limits_that_cannot_be_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        diagnose(network(), SIZE, EVEN, limits=limits)


def test_advice_says_what_the_changed_network_costs():
    model = network()
    weights = model[0].weight
    found = diagnose(model, SIZE, EVEN, 32, {"activation_bytes": 100 * PIXELS})
    advice, problems = advise(model, SIZE, found)
    assert model[0].weight is weights
    assert problems == []
    by_change = {row.change: row for row in advice}
    int8 = diagnose(model, SIZE, EVEN, 8)
    assert (
        by_change["int8 weights and activations"].activation_bytes
        == int8.activation_bytes
        == found.activation_bytes / 4
    )
    smaller = diagnose(model, (3, 8, 8), EVEN, 32)
    assert by_change["images of 8 instead of 16 pixels"].estimate_ms == smaller.estimate_ms
    # channels that a depthwise convolution ties are halved together, and nothing else is
    (early,) = (row for change, row in by_change.items() if "where activations" in change)
    assert early.activation_bytes == 4 * (8 + 16) * PIXELS
    assert [row.activation_bytes for row in advice] == sorted(row.activation_bytes for row in advice)
    assert all("memory" in row.relieves or "compute" in row.relieves for row in advice)


def test_batches_share_weights_and_overhead():
    model, rate = nn.Sequential(nn.Flatten(), nn.Linear(48, 100, bias=False)), Roofline(1e12, {1: 1e6}, overhead_ms=8.0)
    found = diagnose(model, (3, 4, 4), rate)
    advice, _ = advise(model, (3, 4, 4), found)
    (batched,) = (row for row in advice if row.change == "batches of 8")
    assert batched.estimate_ms == pytest.approx(4 * (48 + 100 + 4800 / 8) / 1e3 + 1.0)


def test_a_record_is_read_as_it_was_written(tmp_path):
    found = diagnose(network(), SIZE, EVEN, 8, {"activation_bytes": 1000})
    content = record(found, advise(network(), SIZE, found)[0], "network", "device")
    write_record(tmp_path, content)
    again = read_record(tmp_path)
    assert again["bandwidths"] == {"1": 1e9}
    assert again["exceeded"] == {"activation_bytes": 48 * PIXELS / 1000}
    plot_roofline(tmp_path / "roofline.svg", again)
    assert "layers bound by compute" in (tmp_path / "roofline.svg").read_text()
    (tmp_path / "diagnosis.json").write_text("{")
    with pytest.raises(ValueError, match=r"diagnosis.json is no diagnosis, or damaged .* diagnose again"):
        read_record(tmp_path)


def test_a_network_of_other_inputs_is_diagnosed_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, tokens):
            return self.head(self.embedding(tokens).mean(1))

    example = (torch.zeros(1, 12, dtype=torch.long, device="meta"),)
    found = diagnose(Tokens(), example, EVEN, 8, {"stored_bytes": 100})
    assert found.macs == 24
    advice, problems = advise(Tokens(), example, found)
    assert [row.change for row in advice] == ["codebooks of 4 bits", "batches of 8"]
    assert problems == ["widths and depths: they vary in networks of images alone"]
