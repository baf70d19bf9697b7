"""What a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, and what to write instead. The CLI prints it
    and exits with 2."""


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
