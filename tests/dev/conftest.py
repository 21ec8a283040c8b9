"""What tests of benchmarks and tools share: a tiny model."""

from tiny.model import model, model_file, one_thread  # noqa: F401
