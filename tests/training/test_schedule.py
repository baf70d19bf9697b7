"""Learning-rate schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2chat.config import ScheduleConfig
from seq2chat.training.schedule import rate

WSD = ScheduleConfig("wsd", warmup=0.1, decay=0.4, floor=0.2)
COSINE = ScheduleConfig("cosine", warmup=0.1, floor=0.2)
NOAM = ScheduleConfig("noam", warmup=0.1)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.6, 1), (0.8, 0.6), (1, 0.2)]
)
def test_warmup_stable_decay(progress, expected):
    assert rate(WSD, float(progress)) == pytest.approx(expected)


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.55, 0.9, 1.0])
def test_cosine(progress):
    angle = math.pi * (progress - 0.1) / 0.9
    assert rate(COSINE, progress) == pytest.approx(0.2 + 0.8 * (1 + math.cos(angle)) / 2)


@pytest.mark.parametrize("step", [1, 50, 100, 101, 400, 1000])
def test_noam_is_the_formula_of_the_paper_over_its_peak(step):
    """min(step^-½, step · warmup^-1.5) of 1,000 steps, 100 of them warmup; its peak is
    warmup^-½."""
    formula = min(step**-0.5, step * 100**-1.5) / 100**-0.5
    assert rate(NOAM, step / 1000) == pytest.approx(formula)


@given(
    st.floats(0, 1),
    st.sampled_from(
        [WSD, COSINE, NOAM, ScheduleConfig("wsd", 0.0, 1.0), ScheduleConfig("cosine", 0.0)]
    ),
)
def test_rates_never_rise_after_warmup(progress, schedule):
    assert 0 <= rate(schedule, progress) <= 1
    later = min(1.0, progress + 0.01)
    if progress >= schedule.warmup:
        assert rate(schedule, later) <= rate(schedule, progress) + 1e-12
