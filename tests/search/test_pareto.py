import numpy as np

from search.pareto import front, hypervolume, select

POINTS = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [2.0, 2.0], [5.0, 5.0]])


def brute_force_front(values):
    return {
        i
        for i, a in enumerate(values)
        if np.isfinite(a).all() and not any((b <= a).all() and (b < a).any() for b in values)
    }


def test_front_is_sorted_and_keeps_equal_points():
    assert front(POINTS).tolist() == [0, 1, 4, 2]


def test_front_agrees_with_brute_force(numpy_generator):
    for objectives in (1, 2, 3):
        values = numpy_generator.integers(0, 10, (60, objectives)).astype(float)
        assert set(front(values).tolist()) == brute_force_front(values)


def test_failed_points_are_in_no_front():
    values = np.array([[-np.inf, 1.0], [np.nan, 0.0], [3.0, np.inf], [1.0, 1.0]])
    assert front(values).tolist() == [3]
    assert select(values, 4).tolist() == [3]
    assert front(values[:3]).tolist() == []
    assert select(values[:3], 2).tolist() == []


def test_select_takes_the_first_front_and_then_the_ends_of_the_next():
    values = np.array([[0.0, 0.0], [1.0, 5.0], [2.0, 3.0], [3.0, 2.0], [5.0, 1.0]])
    assert select(values, 1).tolist() == [0]
    assert set(select(values, 3).tolist()) == {0, 1, 4}
    assert select(values, 3)[0] == 0


def test_hypervolume_by_hand():
    # staircase of (1, 4), (2, 2), (4, 1) up to (5, 5): 4 * 1 + 3 * 2 + 1 * 1
    assert hypervolume(POINTS, np.array([5.0, 5.0])) == 11.0
    assert hypervolume(POINTS[:1], np.array([1.0, 5.0])) == 0.0
    assert hypervolume(np.array([[np.nan, 1.0]]), np.array([5.0, 5.0])) == 0.0
