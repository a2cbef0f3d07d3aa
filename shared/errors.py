"""The roots of astrofed's errors: what a user did, and what went wrong on our side.

Every error a user can cause has its own class, named after the mistake, derived from `UserMistake`; its message names
the thing, the value and the mend. The command line prints the message alone and exits with the class's `exit_code`.
"""


class AstrofedError(Exception):
    """A failure that astrofed names itself."""

    exit_code = 1


class UserMistake(AstrofedError):
    """Something the user can mend: a file, a key, a value, a command line."""

    exit_code = 2
