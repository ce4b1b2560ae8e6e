"""Errors that say whose fault it is: the footage's (a row keeps its reason) or the machine's (the unit is tried again)."""


class Unavailable(OSError):
    """What the machine or a service did, not the footage: the unit fails and the next run tries it again."""
