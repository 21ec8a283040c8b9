"""What tests of benchmarks and tools share: a tiny model."""

from tiny.model import model, one_thread  # noqa: F401
