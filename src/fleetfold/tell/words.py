"""Numbers and times as people read them."""

from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from fleetfold.settings import size
from fleetfold.tell.numbers import Number


def worded(number: Number, value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "–"
    match number.unit:
        case "bytes":
            return size(int(value))
        case "seconds":
            return lasted(value)
        case "USD":
            return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"
        case "count":
            return f"{value:,.0f}"
        case _:
            return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def lasted(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def dated(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def made_by(at: datetime) -> str:
    try:
        number = f" {version('fleetfold')}"
    except PackageNotFoundError:  # it runs from a folder
        number = ""
    return f"Made by fleetfold{number} on {dated(at)}."
