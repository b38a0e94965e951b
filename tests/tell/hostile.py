"""Text as devices of ill will write it, and rows that are full of it."""

from fleetfold.view import Row

SCRIPT = "<script>alert(1)</script>"
TEXTS = (
    SCRIPT,
    'a"b\\c\nd',  # ends strings and lines
    "\x00\x1b[31mred\x1b[0m\x07",  # terminals obey it
    "=1+1",  # so do spreadsheets
    "\u202eevil",  # turns the direction of what follows
    "x" * 10_240,
    "]]>&amp;",
    "\ud800",  # half a character
)


def row(number: int = 1, **changed: object) -> Row:
    """A round that went as rounds go."""
    plain: dict[str, object] = {
        "round": number, "kind": "train", "phase": "done", "reason": "folded 3 updates", "cohort": 4,
        "arrived": 3, "refused": 1, "late": 0, "credited": 0, "loss": 0.5 / number, "accuracy": 0.5,
        "scored_by": "devices", "epsilon": None,
        "metrics": {"devices": {"loss": 0.5 / number, "accuracy": 0.5, "f1": 0.25}, "trained": {"loss": 9.0}},
        "seconds": 2.5, "fold_seconds": 0.25, "bytes_up": 300, "bytes_down": 400,
        "opened_at": 1_000.0 + 10 * number, "ended_at": 1_002.5 + 10 * number,
    }  # fmt: skip
    return Row(**{**plain, **changed})  # type: ignore[arg-type]
