"""Why a function was not run. Every one of these means that it was not."""

from __future__ import annotations

__all__ = ["AegisError", "ApprovalRequired", "Denied", "Unavailable"]


class AegisError(Exception):
    """The function was not run."""


class Denied(AegisError):
    """Aegis refused the action, and recorded that."""

    def __init__(
        self,
        reason: str,
        message: str,
        decision_id: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(f"{message} ({reason})")
        self.reason = reason
        """The stable code."""
        self.message = message
        """One sentence for people and models. It never quotes arguments."""
        self.decision_id = decision_id
        self.index = index
        """The place of the record in the ledger."""


class ApprovalRequired(AegisError):
    """A human must agree first. The same call, once that has happened, is allowed once."""

    def __init__(
        self,
        approval: str,
        reason: str,
        message: str,
        decision_id: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(f"{message} Approval {approval} is awaited ({reason})")
        self.approval = approval
        """What `aegis approvals` knows it by."""
        self.reason = reason
        self.message = message
        self.decision_id = decision_id
        self.index = index


class Unavailable(AegisError):
    """The daemon could not be asked, so nobody has allowed anything."""
