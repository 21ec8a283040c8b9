"""Placeholder until the native layout lands."""


def register() -> str | None:
    return "this ComfyUI is too old to load them natively"
