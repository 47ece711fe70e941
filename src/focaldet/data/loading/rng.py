"""Random number generators that depend only on their purpose and keys, such as seed, epoch and image."""

import hashlib
import random


def generator(purpose: str, *keys: int) -> random.Random:
    """A random number generator for (`purpose`, `keys`), the same in every process, on every machine, in any order.

    The keys (seed, epoch, image…) go through a hash, so that neighbors are unrelated: seed 1 of epoch 0 is not
    seed 0 of epoch 1. The random state of the process is neither read nor changed.
    """
    return random.Random(seed_for(purpose, *keys))


def seed_for(purpose: str, *keys: int) -> int:
    """The 63-bit seed of `generator(purpose, *keys)`, for generators of other libraries."""
    text = "/".join((purpose, *map(str, keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
