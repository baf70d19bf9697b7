"""What a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, and what to write instead. The CLI prints it
    and exits with 2."""


class SharedError(UserError):
    """An error that all processes of a run raise together, so that one of them prints it."""


class Unreachable(UserError):
    """The processes of a run can't meet, which another attempt may mend."""


class Diverged(SharedError):
    """The loss or the weights are no longer finite."""


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
