"""Learning rate as a function of the share of the run that is done."""

import math

from seq2chat.config import ScheduleConfig


def rate(schedule: ScheduleConfig, progress: float) -> float:
    """Multiplier of every peak learning rate at `progress` in [0, 1] of the run.

    Progress is steps, tokens, epochs or seconds done over those budgeted, so a run bounded by time
    ends its decay on time. "wsd": linear warmup, constant, linear decay to `floor` (Hägele et al.
    2024, section 3). "cosine": linear warmup, then half a cosine to `floor` (Loshchilov and Hutter
    2017, equation 5). "noam": linear warmup, then falling with the inverse square root of the step
    (Vaswani et al. 2017, equation 3), 1 at its peak.
    """
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.shape == "cosine":
        share = (progress - schedule.warmup) / max(1e-9, 1 - schedule.warmup)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (
            1 + math.cos(math.pi * min(1.0, share))
        )
    if schedule.shape == "noam":
        return max(schedule.floor, math.sqrt(schedule.warmup / progress))
    left = (1 - progress) / max(1e-9, schedule.decay)
    return schedule.floor + (1 - schedule.floor) * max(0.0, min(1.0, left))
