"""What an evaluation will take, measured on a few of its images before there has been one."""

import math

from focaldet.data.dataset import ImageSource
from focaldet.evaluation.evaluate import detect_all
from focaldet.training.sources import choose_images
from focaldet.training.state import TrainState
from focaldet.training.timing import read_clock

# The first batch warms up. There are more, at most so many, while all of them took less than this fraction of the time.
MOST_BATCHES, MOST_TIME = 3, 0.01


def time_detection(state: TrainState, source: ImageSource, *, batch_size: int, total: float) -> float:
    """Seconds that it takes to load an image of `source` and to detect on it: those of the quickest of a few batches.

    The images lie evenly in the source; without any it is 0.

    Args:
        state: its detector that is evaluated is used, and its precision; nothing of it is changed.
        source: the images of an evaluation.
        batch_size: images of a batch.
        total: seconds that the run was given.
    """
    num_images, seconds = len(source.dataset), math.inf
    begin = read_clock()
    for number in range(MOST_BATCHES if num_images else 0):
        if number and read_clock() - begin >= MOST_TIME * total:
            break
        picks = range(min(batch_size, num_images))
        positions = [(number + pick * num_images // len(picks)) % num_images for pick in picks]
        before = read_clock()
        chosen = choose_images(source, positions, name="timed")
        detect_all(state.evaluated, chosen, batch_size=len(positions), precision=state.autocast.precision)
        seconds = min(seconds, (read_clock() - before) / len(positions))
    return seconds if num_images else 0.0
