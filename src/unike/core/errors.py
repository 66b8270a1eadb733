"""The exception that is meant for the user rather than for the programmer."""


class UnikeError(Exception):
    """A mistake the user can mend: what is wrong, where, and what to do, in one line.

    The command line prints the message without a traceback and exits with status 2.
    """


class ReadOnly(UnikeError):
    """Something is to be changed that can only be read here."""


class Unavailable(UnikeError):
    """What is kept here is out of reach, or damaged: nothing is wrong with what was asked for."""
