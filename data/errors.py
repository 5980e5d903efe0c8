"""The one error that a user can mend.

    Exception
    └── BadInput      wrong usage or bad input: found, wanted, what to do; the command line exits with 2

Every other exception is a fault of the machine or of ours and ends a run with exit code 1.
"""


class BadInput(Exception):
    """Say what was found, what was wanted and what to do about it."""

    def __init__(self, found: str, wanted: str, remedy: str) -> None:
        super().__init__(found, wanted, remedy)
        self.found, self.wanted, self.remedy = found, wanted, remedy

    def __str__(self) -> str:
        return f"found:  {self.found}\nwanted: {self.wanted}\nto do:  {self.remedy}"
