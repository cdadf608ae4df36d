from types import SimpleNamespace

import numpy as np
import pytest

from predictors.latency import Prediction
from search.margin import beyond_measurements, device_limits, limit_notes, probability_within

PREDICTOR = SimpleNamespace(
    quantity="latency_ms",
    latency_ms=np.array([5.0, 14.8, 9.0]),
    predict=lambda archs: Prediction(np.array([3.0, 4.0, 4.0]), np.array([0.5, 1.0, 2.0])),
)


def test_the_probability_of_a_limit_is_that_of_the_normal_distribution():
    # two standard errors below, at the limit, and at it once more
    np.testing.assert_allclose(probability_within(PREDICTOR, [None] * 3, 4.0), [0.97725, 0.5, 0.5], atol=1e-5)
    assert probability_within(PREDICTOR, [], 4.0).shape == (0,)


def test_a_limit_beyond_all_measurements_is_said():
    assert beyond_measurements("board", PREDICTOR, 4.0).startswith(
        "the limit board <= 4 ms is below all 3 measurements of its predictor, 5 to 14.8 ms"
    )
    assert "board <= 20 ms is above all 3 measurements" in beyond_measurements("board", PREDICTOR, 20.0)
    assert beyond_measurements("board", PREDICTOR, 5.0) is None


@pytest.mark.parametrize(
    ("probabilities", "measured_ms", "lines"),
    [
        ([0.951, 1.0], [], []),
        ([0.951, 1.0], [1.0, np.nan], []),
        (
            [0.5, 0.949, 1.0],
            [],
            ["2 of the front's 3 architectures are predicted within 1 ms on board by less than 1.64 standard errors: "
             "each keeps within the limit with a probability of 50% to 95%"],
        ),
        (
            [0.5, 0.5],
            [1.25, 1.5],
            ["all 2 architectures of the front are predicted within 1 ms on board by less than 1.64 standard errors: "
             "each keeps within the limit with a probability of 50%",
             "all 2 measured architectures of the front are slower than the limit of 1 ms on board: 1.25 to 1.5 ms"],
        ),
        ([1.0, 1.0, 1.0], [1.5, 0.5, np.nan],
         ["1 of the front's 2 measured architectures is slower than the limit of 1 ms on board: 1.5 ms"]),
        ([1.0], [1.1], ["the front's only measured architecture is slower than the limit of 1 ms on board: 1.1 ms"]),
    ],
)  # fmt: skip
def test_what_there_is_to_say_of_a_front(probabilities, measured_ms, lines):
    assert limit_notes("board", 1.0, probabilities, measured_ms) == lines


def test_limits_on_devices_are_those_that_are_finite():
    limits = {"macs": 1e6, "board": 4.0, "phone": float("inf"), "watch": None}
    assert device_limits(limits, dict.fromkeys(["board", "phone", "watch", "unlimited"])) == {"board": 4.0}
