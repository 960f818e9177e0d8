"""What is raised where a law of laws.py does not hold."""


class BrokenLawError(AssertionError):
    """A law does not hold."""

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law}: {what}")
        self.law = law
