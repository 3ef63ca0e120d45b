"""Errors that callers act on."""


class StudyError(ValueError):
    """The study file, or what it names, cannot be used; holds every problem found.

    Parameters
    ----------
    problems : sequence of str
        One message each: where, what was expected, what was found, the way out.
    """

    def __init__(self, problems: "list[str] | tuple[str, ...] | str") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class StoreError(RuntimeError):
    """The store cannot be read or written as asked."""


class BoldError(ValueError):
    """A BOLD file is damaged or not what the study says."""


class LockError(RuntimeError):
    """Another run holds the store."""
