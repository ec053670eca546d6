"""The one exception type whose message is meant for the user."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the file, field or value and says what to do. Commands print it
    without a traceback and exit with code 2.
    """
