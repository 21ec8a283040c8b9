"""Reports of small tensors."""

from tiny.model import one_thread  # noqa: F401
