"""Batches: functions of (seed, step), fair to every place in the text; validation sees each token once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import split, training_batch, validation_batches

IDS = np.arange(1000, dtype=np.uint16)


def draw(step, seed=1, micro_step=0, ids=IDS, block_size=8, batch_size=16):
    return training_batch(
        ids, block_size=block_size, batch_size=batch_size, seed=seed, step=step, micro_step=micro_step
    )


def test_a_batch_is_a_stretch_of_text_and_the_same_one_further_on():
    inputs, targets = draw(step=3)
    assert inputs.shape == targets.shape == (16, 8)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(targets, inputs + 1)  # IDS counts upwards
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous


def test_a_batch_depends_on_seed_step_and_micro_step_and_on_nothing_else():
    first = draw(step=5)[0]
    draw(step=6)
    np.testing.assert_array_equal(draw(step=5)[0], first)
    for other in (draw(step=6), draw(step=5, seed=2), draw(step=5, micro_step=1)):
        assert not np.array_equal(other[0], first)


def test_the_draws_stay_what_they_are():
    # A run may be resumed under another NumPy: these numbers must never change.
    assert draw(step=7, batch_size=6)[0][:, 0].tolist() == [608, 337, 686, 344, 836, 698]


def test_every_offset_is_drawn_and_none_favoured():
    ids = np.arange(29, dtype=np.uint16)  # 21 offsets for T = 8
    starts = np.concatenate([draw(step, ids=ids)[0][:, 0] for step in range(1000)])
    counts = np.bincount(starts, minlength=21)
    assert len(counts) == 21  # the last window ends at the last token
    expected = len(starts) / 21
    assert ((counts - expected) ** 2 / expected).sum() < 60  # χ², 20 degrees of freedom: 60 is p < 1e-5


def test_a_corpus_shorter_than_a_window_is_refused():
    assert draw(step=0, ids=IDS[:9])[0].shape == (16, 8)
    with pytest.raises(ValueError, match="takes 9 tokens, got 8"):
        draw(step=0, ids=IDS[:8])


@given(n=st.integers(2, 300), block_size=st.integers(1, 40), batch_size=st.integers(1, 9))
def test_validation_scores_every_token_once(n, block_size, batch_size):
    batches = list(validation_batches(IDS[:n], block_size=block_size, batch_size=batch_size))
    targets = np.concatenate([targets.ravel() for _, targets in batches])
    np.testing.assert_array_equal(targets, np.arange(1, n))
    for inputs, targets in batches:
        assert inputs.shape[0] <= batch_size and inputs.shape[1] <= block_size
        np.testing.assert_array_equal(inputs + 1, targets)


@given(n=st.integers(2, 1000), block_size=st.integers(1, 40), max_tokens=st.integers(1, 1000))
def test_a_capped_validation_takes_no_token_twice_and_as_many_as_it_may(n, block_size, max_tokens):
    batches = list(validation_batches(IDS[:n], block_size=block_size, batch_size=4, max_tokens=max_tokens))
    targets = np.concatenate([targets.ravel() for _, targets in batches])
    assert len(np.unique(targets)) == len(targets)
    if n - 1 <= max_tokens:
        assert len(targets) == n - 1
    else:
        assert len(targets) <= max(max_tokens, block_size)
        assert len(targets) > max_tokens - 2 * block_size


@given(n=st.integers(1, 1000), fraction=st.floats(0.01, 0.99))
def test_the_split_is_by_position(n, fraction):
    train, val = split(IDS[:n], fraction)
    np.testing.assert_array_equal(np.concatenate([train, val]), IDS[:n])
    assert abs(len(val) - n * fraction) <= 1


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_split_without_two_sides_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split(IDS, fraction)
