import numpy as np
import pytest
import torch
from scipy import stats

from distill.rdm import dissimilarity, rdm_similarity, teacher_guidance


def activations(seed: int, shape=(7, 3, 4, 4)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hand_worked_matrix():
    # the second image is the first scaled and shifted, the third its opposite, the fourth unrelated to them
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [12.0, 14.0, 16.0, 18.0], [4.0, 3.0, 2.0, 1.0], [1.0, -1.0, -1.0, 1.0]])
    expected = torch.tensor([[0.0, 0, 2, 1], [0, 0, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0]])
    torch.testing.assert_close(dissimilarity(rows), expected)


def test_matrix_is_numpys_correlation():
    batch = activations(0)
    torch.testing.assert_close(
        dissimilarity(batch.double()), torch.from_numpy(1 - np.corrcoef(batch.flatten(1).double().numpy()))
    )


def test_large_means_and_scales_cost_no_digits():
    batch = activations(0).double()
    # float32 keeps 1/16 at 10^6, so the shift is exact on this grid
    grid = (batch * 16).round() / 16
    shifted = (grid + 1e6).float()
    torch.testing.assert_close(dissimilarity(shifted), dissimilarity(grid).float(), atol=1e-5, rtol=0)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(
            dissimilarity(scale * batch.float()), dissimilarity(batch).float(), atol=1e-5, rtol=0
        )


def test_constant_images_correlate_with_none():
    batch = activations(0)
    batch[2] = 0.1
    matrix = dissimilarity(batch)
    assert matrix[2].tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert matrix.isfinite().all()


@pytest.mark.parametrize(("method", "reference"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_similarity_is_scipys(method, reference):
    a, b = (dissimilarity(activations(seed)) for seed in (0, 1))
    a = a.mul(8).round()  # with ties
    upper = np.triu_indices(7, 1)
    expected = reference(a.numpy()[upper], b.numpy()[upper]).statistic
    assert rdm_similarity(a, b, method) == pytest.approx(expected)
    assert rdm_similarity(b, b, method) == pytest.approx(1)


def test_spearman_sees_order_alone():
    matrix = dissimilarity(activations(0))
    assert rdm_similarity(matrix, matrix**3, "spearman") == pytest.approx(1)
    assert rdm_similarity(matrix, matrix**3, "pearson") < 0.999


def test_similarity_with_a_matrix_of_equal_entries_is_0():
    matrix = dissimilarity(activations(0))
    assert rdm_similarity(matrix, 1 - torch.eye(7)) == 0


def test_guidance_averages_each_teacher_layers_best_match():
    student = [dissimilarity(activations(seed)) for seed in range(3)]
    teacher = [dissimilarity(activations(seed)) for seed in range(3, 5)]
    table = [[rdm_similarity(t, s) for s in student] for t in teacher]
    assert teacher_guidance(student, teacher) == pytest.approx(np.mean([max(row) for row in table]))
    assert teacher_guidance(student, student[:2]) == pytest.approx(1)  # the best one, wherever it lies
    assert teacher_guidance(student[:2], student) < 1


def test_bad_input_is_named():
    matrix = dissimilarity(activations(0))
    with pytest.raises(ValueError, match=r"at least two activations of each image, not \[5, 1\]"):
        dissimilarity(torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"\[5, 5\], \[7, 7\]"):
        rdm_similarity(matrix, matrix[:5, :5])
    with pytest.raises(ValueError, match="not 'kendall'"):
        rdm_similarity(matrix, matrix, "kendall")
    with pytest.raises(ValueError, match="no layers to compare: 1 and 0"):
        teacher_guidance([], [matrix])
