"""Go on from a point of a stream another way and come back, without a second cache where one will do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from ..stream.cache import FloatCache, KVCache


@contextmanager
def branch_cache(cache: KVCache, frames: int) -> Iterator[KVCache]:
    """A cache to go on with from where `cache` stands, for as long as the block lasts, as far as latent frame `frames`.

    As long as nothing is evicted it is `cache` itself: slots from here on are written before they are read, so that
    restoring the position undoes all. Else it is a copy.
    """
    if not isinstance(cache, FloatCache) or frames > cache.frames:
        other = copy.deepcopy(cache)
        try:
            yield other
        finally:
            other.reset()  # freed at once, whoever still knows it
        return
    start, end = cache.start, cache.end
    try:
        yield cache
    finally:
        cache.start, cache.end = start, end
