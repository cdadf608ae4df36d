"""A family that trains in a moment, for tests of training: elastic in everything, smaller than those with a name."""

from supernet import Family
from supernet.families.inverted_residual import Network, Stage, inverted_residual

SPACE = "tests.small:small"  # its name, in jobs


def small(num_classes: int = 10, in_chans: int = 3) -> Family:
    stages = (
        Stage((8,), (1,), (3, 5), (1,), act="relu"),
        Stage((8, 16), (1, 2), (3, 5), (2, 3), stride=2, se_ratio=0.25),
    )
    network = Network(stages, stem=(8,), features=(16, 24), head=(16, 32), resolution=(24, 28, 32))
    return inverted_residual(network, num_classes, in_chans)
