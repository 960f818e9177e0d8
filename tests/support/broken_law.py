"""The exception for a broken law of laws.py."""


class BrokenLawError(AssertionError):
    """A broken law."""

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law}: {what}")
        self.law = law
