"""Products of matrices in as many threads as PyTorch was told to use."""

import numpy as np
import pytest

from sb3_hybrid_grpo.policies import networks


@pytest.mark.parametrize("shape", [(2, 3, 4), (128, 64, 64), (512, 128, 128)])
def test_products_are_numpys(shape):
    n_rows, n, width = shape
    rng = np.random.default_rng(0)
    left = rng.normal(size=(n_rows, n)).astype(np.float32)
    right = rng.normal(size=(n, width)).astype(np.float32)
    out = np.empty((n_rows, width), dtype=np.float32)
    assert networks.product(left, right, out) is out
    np.testing.assert_allclose(out, np.einsum("bn,nm->bm", left, right), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(networks.product(left.T.copy().T, right.T.copy().T), out, rtol=1e-4, atol=1e-4)


def test_numpy_gets_no_product_that_its_library_would_divide_among_threads(monkeypatch):
    sizes = []

    def matmul(left, right, out=None):
        sizes.append(left.size * right.shape[1])
        return original(left, right, out=out)

    original = np.matmul
    monkeypatch.setattr(networks.np, "matmul", matmul)
    for n_rows in (1, 64, 65, 4096):
        networks.product(np.ones((n_rows, 64), dtype=np.float32), np.ones((64, 64), dtype=np.float32))
    assert sizes == [64 * 64, 64**3]
