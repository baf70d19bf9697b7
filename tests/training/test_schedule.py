"""Learning-rate schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2chat.config import ScheduleConfig
from seq2chat.training.schedule import rate

WSD = ScheduleConfig("wsd", warmup=0.1, decay=0.4, floor=0.2)
COSINE = ScheduleConfig("cosine", warmup=0.1, floor=0.2)


@pytest.mark.parametrize(("progress", "expected"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.6, 1), (0.8, 0.6), (1, 0.2)])
def test_warmup_stable_decay(progress, expected):
    assert rate(WSD, float(progress)) == pytest.approx(expected)


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.55, 0.9, 1.0])
def test_cosine(progress):
    angle = math.pi * (progress - 0.1) / 0.9
    assert rate(COSINE, progress) == pytest.approx(0.2 + 0.8 * (1 + math.cos(angle)) / 2)


@given(st.floats(0, 1), st.sampled_from([WSD, COSINE, ScheduleConfig("wsd", 0.0, 1.0), ScheduleConfig("cosine", 0.0)]))
def test_rates_stay_between_zero_and_one_and_never_rise_after_warmup(progress, schedule):
    assert 0 <= rate(schedule, progress) <= 1
    later = min(1.0, progress + 0.01)
    if progress >= schedule.warmup:
        assert rate(schedule, later) <= rate(schedule, progress) + 1e-12
