"""What ends a ServerApp's process while nothing but waiting is left to do: all is committed by then."""


class Suspend(BaseException):
    """Raised where the app would wait. Of no kind that an app's `except Exception` would swallow."""


EXIT = 75
"""The exit code of a process that left so: try again, when something has arrived."""
