"""How a ServerApp's process leaves while nothing but waiting is left to do, and what it says at its end."""

from msgspec import Struct


class Suspend(BaseException):
    """Raised where the app would wait. Of no kind that an app's `except Exception` would swallow."""


EXIT = 75
"""The exit code of a process that left so: try again, when something has arrived."""


class Words(Struct, frozen=True):
    """Of a process that has failed, its last line: what told() says, and whether the error is the user's."""

    sentence: str
    next: str = ""
    users: bool = False
