"""Schedules: bounds, monotone stretches, end points; the object writes what the function says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nn
from nn.schedule import Scheduler, constant, warmup_cosine, warmup_stable_decay

lengths = st.tuples(st.integers(0, 20), st.integers(1, 50), st.integers(0, 50))


@given(lengths, st.floats(1e-5, 1), st.floats(0, 1))
def test_cosine(length, max_lr, share):
    warmup, rest, _ = length
    total, min_lr = warmup + rest, max_lr * share
    settings = {"max_lr": max_lr, "min_lr": min_lr, "warmup_steps": warmup, "total_steps": total}
    lrs = [warmup_cosine(s, **settings) for s in range(total + 9)]
    assert all(lr > 0 or min_lr == 0 for lr in lrs)
    assert max(lrs) <= max_lr * (1 + 1e-12)
    assert lrs[warmup] == pytest.approx(max_lr)
    assert (np.diff(lrs[: warmup + 1]) > 0).all()
    assert (np.diff(lrs[warmup:]) <= 1e-15).all()
    assert lrs[total:] == pytest.approx([min_lr] * 9)
    if rest % 2 == 0:
        assert lrs[warmup + rest // 2] == pytest.approx((max_lr + min_lr) / 2)


@given(lengths, st.floats(1e-5, 1), st.floats(0, 1))
def test_stable_then_decay(length, max_lr, share):
    warmup, decay, stable = length
    total, min_lr = warmup + stable + decay, max_lr * share
    settings = {"max_lr": max_lr, "min_lr": min_lr, "warmup_steps": warmup, "decay_steps": decay, "total_steps": total}
    lrs = [warmup_stable_decay(s, **settings) for s in range(total + 9)]
    assert lrs[warmup : warmup + stable + 1] == pytest.approx([max_lr] * (stable + 1))
    assert lrs[:warmup] == [constant(s, max_lr=max_lr, warmup_steps=warmup) for s in range(warmup)]
    falling = np.diff(lrs[warmup + stable : total + 1])
    np.testing.assert_allclose(falling, (min_lr - max_lr) / decay, rtol=1e-6, atol=1e-15)
    assert lrs[total:] == pytest.approx([min_lr] * 9)


def test_constant_rises_and_stays():
    assert [constant(s, max_lr=4.0, warmup_steps=3) for s in range(6)] == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    assert constant(0, max_lr=2.0) == 2.0


def test_scheduler_writes_each_groups_rate_and_resumes():
    a, b = nn.Parameter([1.0]), nn.Parameter([1.0])

    def build():
        optimizer = nn.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
        return Scheduler(optimizer, lambda s: warmup_cosine(s, max_lr=0.5, total_steps=10, warmup_steps=2))

    scheduler = build()
    seen = [scheduler.get_last_lr()]
    for _ in range(5):
        scheduler.step()
        seen.append(scheduler.get_last_lr())
    expected = [warmup_cosine(s, max_lr=0.5, total_steps=10, warmup_steps=2) for s in range(6)]
    np.testing.assert_allclose([x for x, _ in seen], expected)
    np.testing.assert_allclose([y for _, y in seen], np.array(expected) * 0.1)

    resumed = build()
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.step() == scheduler.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr() == [g["lr"] for g in resumed.optimizer.param_groups]
