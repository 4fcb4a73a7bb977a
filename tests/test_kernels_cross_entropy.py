"""Cross-entropy, alone and fused with the projection, against the definition in higher precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels import cross_entropy as module
from autograd.kernels.cross_entropy import cross_entropy, cross_entropy_backward, linear_cross_entropy

IGNORED = -100


def exact(logits, targets):
    """(losses, probabilities minus one-hot, lse), all 0 in ignored rows but lse."""
    m = logits.max(axis=-1, keepdims=True)
    lse = m + np.log(np.exp(logits - m).sum(axis=-1, keepdims=True))
    counted = (targets != IGNORED)[:, None]
    onehot = np.arange(logits.shape[1]) == targets[:, None]
    losses = np.where(counted, lse - np.where(onehot, logits, 0).sum(axis=-1, keepdims=True), 0)
    return losses[:, 0], np.where(counted, np.exp(logits - lse) - onehot, 0), lse[:, 0]


def some_targets(count, classes, seed, ignored):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    targets[rng.random(count) < ignored] = IGNORED
    return targets


@given(matrices(), seeds, st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_cross_entropy(logits, seed, ignored, data):
    targets = some_targets(len(logits), logits.shape[1], seed, ignored)
    losses, lse = cross_entropy(logits, targets, IGNORED)
    exact_losses, slope, exact_lse = exact(precise(logits), targets)
    size = 1 + abs(logits).max(initial=0)
    check(losses, exact_losses, 8, scale=size)
    check(lse, exact_lse, 8, scale=size)
    dlosses = data.draw(layouts(numbers(len(logits), logits.dtype, seed)))
    dlogits = cross_entropy_backward(dlosses, logits, targets, lse, IGNORED)
    check(dlogits, precise(dlosses)[:, None] * slope, 8, scale=size * (abs(dlosses)[:, None] + np.zeros_like(slope)))


@given(dtypes, st.sampled_from([0, 1, 5, 33, 70]), st.sampled_from([1, 3, 17, 64]), st.sampled_from([1, 2, 50, 333]),
       seeds, st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_linear_cross_entropy(dtype, count, width, classes, seed, ignored, data):
    x = data.draw(layouts(numbers((count, width), dtype, seed)))
    weight = data.draw(layouts(numbers((classes, width), dtype, seed + 1)))
    targets = some_targets(count, classes, seed, ignored)
    rows_at_a_time = data.draw(st.sampled_from([1, 16, 40]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", rows_at_a_time * classes * dtype.itemsize)
        loss, dx, dweight = linear_cross_entropy(x, weight, targets, IGNORED, True)
        only_loss = linear_cross_entropy(x, weight, targets, IGNORED, False)
    assert only_loss[0].tobytes() == loss.tobytes() and only_loss[1:] == (None, None)
    assert loss.shape == () and loss.dtype == dx.dtype == dweight.dtype == dtype
    counted = (targets != IGNORED).sum()
    exact_x, exact_weight = precise(x, weight)
    losses, slope, _ = exact(exact_x @ exact_weight.T, targets)
    if not counted:
        assert np.isnan(loss) and not dx.any() and not dweight.any()
        assert dx.shape == x.shape and dweight.shape == weight.shape
        return
    size = width * (1 + abs(x).max()) * (1 + abs(weight).max())
    check(loss, losses.sum() / counted, 8, scale=size)
    check(dx, slope @ exact_weight / counted, 16, scale=size * (1 + abs(weight).max()) / counted)
    check(dweight, slope.T @ exact_x / counted, 16 + count, scale=size * (1 + abs(x).max()) / counted)


def test_large_logits_neither_overflow_nor_vanish():
    for dtype in DTYPES:
        logits = np.array([[1e4, 0, -1e4], [0, 1e4, -np.inf]], dtype)
        losses, lse = cross_entropy(logits, np.array([2, 1]), IGNORED)
        np.testing.assert_array_equal(losses, [2e4, 0])
        np.testing.assert_array_equal(lse, [1e4, 1e4])
        x = np.array([[100.0]], dtype)
        loss, dx, dweight = linear_cross_entropy(x, np.array([[100], [-100]], dtype), np.array([1]), IGNORED, True)
        assert loss == 2e4 and dx == 200 and (dweight == [[100], [-100]]).all()


def test_nan_is_not_hidden():
    for dtype in DTYPES:
        logits = numbers((2, 40), dtype, 0)
        logits[0, 3] = np.nan
        losses, _ = cross_entropy(logits, np.array([5, 5]), IGNORED)
        assert np.isnan(losses[0]) and np.isfinite(losses[1])


def test_minus_100_is_ignored_unless_another_number_is_named():
    logits, targets = numbers((9, 5), np.float32, 0), np.arange(9) % 3
    for ignored, named in ((-100, ()), (1, (1,))):
        kept = targets != 1
        losses, lse = cross_entropy(logits, np.where(kept, targets, ignored), *named)
        np.testing.assert_array_equal(losses, np.where(kept, cross_entropy(logits, targets)[0], 0))
        slope = cross_entropy_backward(np.ones(9, np.float32), logits, np.where(kept, targets, ignored), lse, *named)
        np.testing.assert_array_equal(slope.any(axis=1), kept)
        found = linear_cross_entropy(logits, np.eye(5, dtype=np.float32), np.where(kept, targets, ignored), *named)
        expected = linear_cross_entropy(logits[kept], np.eye(5, dtype=np.float32), targets[kept])
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1][kept], expected[1])


def test_targets_are_checked():
    logits = np.zeros((2, 3), np.float32)
    for wrong in (3, -1):
        with pytest.raises(IndexError, match=f"target {wrong} is out of range"):
            cross_entropy(logits, np.array([0, wrong]), IGNORED)
        with pytest.raises(IndexError, match=f"target {wrong} is out of range"):
            linear_cross_entropy(logits, np.zeros((3, 3), np.float32), np.array([0, wrong]), IGNORED, True)
    for shape in (1, 3, (2, 1)):
        with pytest.raises(ValueError, match="one target for each of 2 rows"):
            cross_entropy(logits, np.zeros(shape, int), IGNORED)


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        logits, targets = numbers((201, 500), dtype, 0), some_targets(201, 500, 0, 0.1)
        losses, lse = same_bits_for_any_threads(cross_entropy, logits, targets, IGNORED)
        same_bits_for_any_threads(cross_entropy_backward, losses, logits, targets, lse, IGNORED)
        x, weight = numbers((201, 33), dtype, 1), numbers((500, 33), dtype, 2)
        same_bits_for_any_threads(linear_cross_entropy, x, weight, targets, IGNORED, True)
