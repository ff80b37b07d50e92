import numpy as np

from t3d.metrics import image, retrieval


def test_psnr_of_known_errors():
    target = np.full((2, 4, 4, 3), 0.5, np.float32)
    shifted = target + np.array([0.1, 0.01], np.float32)[:, None, None, None]
    np.testing.assert_allclose(image.psnr(shifted, target), [20.0, 40.0], atol=1e-3)
    np.testing.assert_allclose(image.psnr(target, target), 100.0, atol=1e-4)


def test_retrieval_against_a_loop_and_ties_count_against():
    random = np.random.default_rng(0)
    renders, targets = random.normal(size=(5, 2, 3)), random.normal(size=(7, 2, 3))
    distance = retrieval.distances(renders, targets)
    for n in range(5):
        for m in range(7):
            np.testing.assert_allclose(distance[n, m], np.mean((renders[n] - targets[m]) ** 2), rtol=1e-4)
    own = np.array([0, 1, 2, 3, 4])
    rank = retrieval.ranks(distance, own)
    assert rank.tolist() == [sorted(row).index(row[k]) for row, k in zip(distance.tolist(), own)]
    assert retrieval.ranks(np.zeros((1, 4)), np.array([2]))[0] == 3
    assert retrieval.recall(np.array([0, 3, 9, 12]), 1) == 0.25 and retrieval.recall(np.array([0, 3, 9, 12]), 10) == 0.75
