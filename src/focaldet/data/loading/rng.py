"""Random numbers that depend on what they are for and on nothing else."""

import hashlib
import random


def stream(purpose: str, *keys: int) -> random.Random:
    """A generator of its own for (`purpose`, `keys`), the same in every process, on every machine and in any order.

    The keys (seed, epoch, image…) go through a hash, so that neighbours share nothing: seed 1 of epoch 0 is not
    seed 0 of epoch 1. The random state of the process is neither read nor changed.
    """
    return random.Random(state(purpose, *keys))


def state(purpose: str, *keys: int) -> int:
    """The 63-bit seed of `stream(purpose, *keys)`, for generators of other libraries."""
    text = "/".join((purpose, *map(str, keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
