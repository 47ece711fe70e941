"""Where the time of a run goes, and how much of it is left."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping

from focaldet.training.logs import clock

FORWARD, BACKWARD, UPDATE = "forward and losses", "backward", "update"
LOADING, EVALUATION, OTHER = "loading", "evaluation", "saving and logging"
STEP_PARTS = (FORWARD, BACKWARD, UPDATE)

# Steps whose mean is the present speed, and those at the start of a program that are slow and do not count.
RECENT_STEPS, WARM_UP_STEPS = 64, 2

# Of an evaluation before any image of it was timed: its seconds for an image, in those of training on one. Of BatchNorm
# that is measured anew, which is forward alone, likewise.
EVALUATION_GUESS, NORM_GUESS = 0.75, 0.5

# An evaluation takes this much longer than what was timed: metrics, saving, and more boxes than early in a run.
EVALUATION_MARGIN = 1.2

# A part that takes less of an epoch is not printed.
WORTH_TELLING = 0.01

# Loading that takes more than this fraction of an epoch is worth processes of its own.
MUCH_LOADING = 0.4

# An evaluation that takes more than this fraction of an epoch is worth being made less often.
MUCH_EVALUATION = 0.4


def read_clock() -> float:
    """Seconds since some moment; never runs back."""
    return time.perf_counter()


class Stopwatch:
    """The seconds of each part of the work since the last `reset`.

    A GPU works on while the program goes on: what it still computes then counts for the next part that waits for it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = read_clock()

    def lap(self, part: str) -> float:
        """Count the seconds since the last lap for `part`, and return them."""
        now = read_clock()
        spent, self.last = now - self.last, now
        self.seconds[part] += spent
        return spent

    def reset(self) -> dict[str, float]:
        """The seconds of each part so far; from now on they are counted anew."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


class Pace:
    """The speed of a run as measured since the program began: seconds of a step and of an evaluation.

    `evaluation` are those of the last evaluation before, `norm_images` the images that one passes through beside its
    own, to measure BatchNorm; all images are those of this process. `num_steps` counts the steps that were measured.
    """

    def __init__(
        self,
        *,
        images_per_step: int,
        validation_images: int,
        evaluation: float | None = None,
        norm_images: int = 0,
    ) -> None:
        self.num_steps = 0
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._images_per_step, self._validation_images = images_per_step, validation_images
        self._norm_images = norm_images
        self._evaluation = evaluation
        self._detection: float | None = None

    def count_step(self, seconds: float) -> None:
        """Take note of the seconds of a step, all between it and the one before included but for evaluations."""
        self.num_steps += 1
        if self.num_steps <= WARM_UP_STEPS + 1:
            self._steps.clear()  # the first ones are better than nothing until there are others
        self._steps.append(seconds)

    def count_evaluation(self, seconds: float) -> None:
        """Take note of the seconds of an evaluation."""
        self._evaluation = seconds

    def count_detection(self, seconds: float) -> None:
        """Take note of the seconds of an image in an evaluation, before there has been one."""
        self._detection = EVALUATION_MARGIN * seconds

    @property
    def is_guess(self) -> bool:
        """Whether nothing of an evaluation was timed."""
        return self._evaluation is None and self._detection is None

    @property
    def step(self) -> float:
        """Seconds of a step: the mean of the recent ones; 0 before the first."""
        return sum(self._steps) / max(1, len(self._steps))

    @property
    def evaluation(self) -> float:
        """Seconds of an evaluation: those of the last one, or from the time of some images, or of training."""
        if self._evaluation is not None:
            return self._evaluation
        return self._validation_images * self._image_seconds(EVALUATION_GUESS) + self.norm

    @property
    def norm(self) -> float:
        """Seconds of measuring BatchNorm: a guess from the time of some images, or from that of training."""
        return self._norm_images * self._image_seconds(NORM_GUESS)

    def _image_seconds(self, guess: float) -> float:
        """Seconds of an image as timed in detection, or as a fraction of those in training."""
        return guess * self.step / self._images_per_step if self._detection is None else self._detection

    def seconds_for(self, *, steps: int, evaluations: int) -> float:
        """Seconds that so many steps and evaluations will take."""
        return steps * self.step + evaluations * self.evaluation


def describe_epoch(seconds: Mapping[str, float], *, num_images: int, left: float, workers: int, epoch: str) -> str:
    """One line on where the `seconds` of an epoch went, and when the run will end.

    Args:
        seconds: by part, as of `Stopwatch.reset`.
        num_images: the images that it trained on.
        left: seconds to the end of the run.
        workers: processes that load.
        epoch: what the epoch is called.
    """
    total, training = sum(seconds.values()), sum(seconds.get(part, 0.0) for part in STEP_PARTS)
    loading = seconds.get(LOADING, 0.0)
    parts = ", ".join(f"{part} {_brief(seconds.get(part, 0.0))}" for part in STEP_PARTS)
    listed = [f"{LOADING} {_brief(loading)}", f"steps {_brief(training)} ({parts})"]
    rest = {part: seconds.get(part, 0.0) for part in (EVALUATION, OTHER)}
    listed += [f"{part} {_brief(spent)}" for part, spent in rest.items() if spent > WORTH_TELLING * total]
    text = f"{epoch} took {clock(total)}: {', '.join(listed)}"
    text += f"; {num_images / max(loading + training, 1e-9):.1f} images/s in training; {clock(left)} left"
    if loading > MUCH_LOADING * total and not workers:
        text += "; --workers 2 would load images beside the network"
    if seconds.get(EVALUATION, 0.0) > MUCH_EVALUATION * total:
        text += "; --evaluate-every 2 would save half of the evaluation"
    return text


def _brief(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
