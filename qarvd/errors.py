"""Errors a user can act on: each message says what came, what was expected and what to do."""


class QarvdError(Exception):
    """Base of every error this package raises for bad input."""


class ShapeError(QarvdError):
    """Tensors do not fit together."""


class CheckpointError(QarvdError):
    """A file is truncated, foreign, or lacks what its format needs."""


class SettingError(QarvdError):
    """A choice (recipe, schedule, command-line option) is outside what is supported."""


class PromptError(QarvdError):
    """A prompt cannot be understood by the model it is meant for."""


class DeviceError(QarvdError):
    """A graphics card, its driver or its compiler cannot do what is needed."""


def first_line(error: BaseException) -> str:
    """What a foreign error says in one line; its kind, where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
