"""The error that a user can mend."""


class UserError(Exception):
    """Bad input: a flag, a file or a machine that is not what it should be.

    The message is one line that names the flag or file, its value and what would be right.
    ``main.py`` prints it and exits with status 2; anything else that escapes is a bug.
    """
