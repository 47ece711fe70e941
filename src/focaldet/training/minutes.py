"""A run that is given minutes instead of epochs: its schedule is fitted to the time as the speed is measured.

What was decided is a `Plan`, a part of the saved state: a run that is resumed goes on by the plan it was saved with.
"""

import bisect
import math
from typing import NamedTuple

from focaldet.data.formats.text import quantity
from focaldet.training.timing import Pace

# A plan is first made after this many steps, and revised each time that this fraction of the time has gone.
FIRST_STEPS, REVISED_AFTER = 5, 0.05

# Writing the report at the end, in seconds: 5 to 7 on two cores, for some dozen validation images.
END_SECONDS = 7.0

# The end is moved back to that of a whole epoch where this costs at most this fraction of the time.
ROUNDED = 0.03

# A change of the number of steps by this fraction is worth a line.
REPORTED_CHANGE = 0.1


class Plan(NamedTuple):
    """How a run of some minutes goes on from `start_step`, when the fraction `start_progress` of it was done.

    It ends before step `end_step` and is revised before step `revision_step`. `epoch_limit` is the number of epochs
    that were planned when the present epoch began.
    """

    start_step: int
    start_progress: float
    end_step: int
    revision_step: int
    epoch_limit: int

    def progress(self, step: int) -> float:
        """The fraction of the run, in [0, 1), that is done at `step`: it rises evenly from revision to revision."""
        steps = max(1, self.end_step - self.start_step)
        return self.start_progress + (1 - self.start_progress) * min(1.0, (step - self.start_step) / steps)

    def num_epochs(self, steps_per_epoch: int) -> int:
        """The epochs of the run, the last of which may be cut short; at least 1."""
        return max(1, math.ceil(self.end_step / steps_per_epoch))


def first_plan(*, steps_per_epoch: int, epochs: int) -> Plan:
    """The plan before anything was measured: as if there were time for so many epochs."""
    return Plan(0, 0.0, steps_per_epoch * epochs, FIRST_STEPS, epochs)


def revise_plan(
    plan: Plan,
    *,
    step: int,
    left: float,
    total: float,
    pace: Pace,
    steps_per_epoch: int,
    evaluate_every: int | None,
    closing: float = 0.0,
) -> Plan:
    """The plan from `step` on by the present speed; its end is `step` where no time is left for another.

    Args:
        plan: the one that held so far.
        step: the updates that were made.
        left: seconds that are left to the run.
        total: seconds that it was given.
        pace: the speed.
        steps_per_epoch: updates in an epoch.
        evaluate_every: epochs between evaluations; the last one is always evaluated, unless it is None.
        closing: seconds of what follows the last step beside evaluation and report.
    """
    second, evaluation = max(pace.step, 1e-9), 0.0 if evaluate_every is None else pace.evaluation
    period = steps_per_epoch * (evaluate_every or 1)

    def cost(end: int) -> float:
        evaluations = -(-end // period) - step // period  # those on the way, and the one at the end
        return (end - step) * second + evaluations * evaluation

    free = left - END_SECONDS - closing
    ends = range(step + 1, step + 2 + max(0, math.floor(free / second)))
    end = step + bisect.bisect_right(ends, free, key=cost)
    whole = end // steps_per_epoch * steps_per_epoch
    if whole > step and (end - whole) * second <= ROUNDED * total:
        end = whole
    if step % steps_per_epoch == 0 and step % period:
        end = max(end, step + 1)  # the epoch that ended was not evaluated, and the last one must be
    until = max(1, round(REVISED_AFTER * total / second))
    return Plan(step, plan.progress(step), end, step + until, plan.epoch_limit)


def describe_plan(before: Plan, plan: Plan, *, pace: Pace, steps_per_epoch: int) -> str | None:
    """One line on a new plan; None where it is much as the one `before`."""
    is_first = before.start_step == 0
    if not is_first and abs(plan.end_step - before.end_step) < REPORTED_CHANGE * before.end_step:
        return None
    number = f"{plan.end_step / steps_per_epoch:.3g}"
    epochs = "1 epoch" if number == "1" else f"{number} epochs"
    return (
        f"{pace.step:.2g} s a step and {pace.evaluation:.2g} s an evaluation: "
        f"the run will have {quantity(plan.end_step, 'step')}, {epochs}"
    )
