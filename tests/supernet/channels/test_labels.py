import pytest

from supernet.channels.labels import FIXED, Composition, LabelSet


@pytest.fixture
def labels():
    return LabelSet()


def test_halves_of_a_gate_are_the_same_channels(labels):
    whole, bias = labels.new(12), labels.new(12)
    half = labels.split(whole, 2)
    assert labels.size(half) == 6
    labels.tie(whole, bias)
    assert labels.parts(bias) == Composition(2, half, 1)


def test_what_is_tied_before_it_is_split_is_split_with_it(labels):
    a, b = labels.new(12), labels.new(12)
    labels.tie(a, b)
    third = labels.split(b, 3)
    assert labels.parts(a) == labels.parts(b) == Composition(3, third, 1)
    sixth = labels.split(a, 6)  # the thirds fall in two
    assert labels.parts(b) == Composition(6, sixth, 1)


def test_flattened_channels_repeat_and_come_back(labels):
    channels = labels.new(4)
    flat = labels.merge([FIXED, channels, FIXED, FIXED], [2, 4, 3, 3])
    assert labels.parts(flat) == Composition(2, channels, 9)
    rows, pixels = labels.unmerge(flat, [8, 9])
    assert (labels.parts(rows), pixels) == (Composition(2, channels, 1), FIXED)
    assert labels.parts(labels.unmerge(flat, [2, 4, 9])[1]) == Composition(1, channels, 1)
    assert labels.find(channels) != FIXED
    assert labels.unmerge(flat, [6, 12]) == (FIXED, FIXED)  # a channel would fall apart
    assert labels.find(channels) == labels.find(flat) == FIXED


def test_blocks_of_different_kinds_fix_each_other(labels):
    a, b = labels.new(12), labels.new(12)
    labels.split(a, 2)
    labels.reason = "tied"
    labels.tie(labels.compose(1, labels.new(4), 3), b)
    assert labels.tie(a, b) == FIXED
    assert labels.find(a) == labels.find(b) == FIXED
    assert labels.why(a) == labels.why(b) == "tied"


def test_a_coarser_block_falls_into_finer_ones(labels):
    fine, coarse = labels.new(24), labels.new(24)
    part = labels.split(fine, 6)
    half = labels.split(coarse, 2)
    labels.tie(coarse, fine)
    assert labels.parts(coarse) == Composition(6, part, 1)
    assert labels.parts(half) == Composition(3, part, 1)


def test_the_first_reason_is_kept(labels):
    a, b = labels.new(4), labels.new(4)
    labels.reason = "cumsum"
    labels.fix([a])
    labels.reason = "add"
    labels.tie(b, a)
    assert (labels.why(a), labels.why(b)) == ("cumsum", "cumsum")


def test_two_channels_cannot_be_halved_further(labels):
    pair = labels.new(2)
    assert labels.split(pair, 2) == FIXED
    assert labels.split(labels.new(6), 4) == FIXED
