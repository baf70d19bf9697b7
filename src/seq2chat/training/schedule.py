"""The learning rate as a function of the completed share of a run."""

import math

from seq2chat.config import ScheduleConfig


def rate(schedule: ScheduleConfig, progress: float) -> float:
    """Return the factor of every peak learning rate at `progress` in [0, 1].

    Progress is the used share of the budget in any unit, so a timed run finishes its decay on time.
    The shapes, all after a linear warmup:

    - "wsd": constant, then a linear decay to `floor` (Hägele et al. 2024, section 3)
    - "cosine": half a cosine to `floor` (Loshchilov and Hutter 2017, equation 5)
    - "noam": the inverse square root of the step (Vaswani et al. 2017, equation 3), 1 at the peak

    >>> wsd = ScheduleConfig(shape="wsd", warmup=0.1, decay=0.5, floor=0.0)
    >>> [rate(wsd, progress) for progress in (0.05, 0.3, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.shape == "cosine":
        share = (progress - schedule.warmup) / max(1e-9, 1 - schedule.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return schedule.floor + (1 - schedule.floor) * cosine
    if schedule.shape == "noam":
        return max(schedule.floor, math.sqrt(schedule.warmup / progress))
    left = (1 - progress) / max(1e-9, schedule.decay)
    return schedule.floor + (1 - schedule.floor) * max(0.0, min(1.0, left))
