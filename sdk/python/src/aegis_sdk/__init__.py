"""Governs functions: each call is decided by Aegis before it runs, and recorded.

    from aegis_sdk import govern

    delete_order = govern(delete_order, server="shop")

The function runs only if the daemon says so. It does not run when a policy denies it (`Denied`), when
a human must agree first (`ApprovalRequired`), and when the daemon cannot be asked (`Unavailable`).
"""

from .aio import AsyncAegis
from .client import Aegis
from .errors import AegisError, ApprovalRequired, Denied, Unavailable
from .governing import govern, governed
from .model import Decision, Event, Outcome, Question, tool_call

__all__ = [
    "Aegis",
    "AegisError",
    "ApprovalRequired",
    "AsyncAegis",
    "Decision",
    "Denied",
    "Event",
    "Outcome",
    "Question",
    "Unavailable",
    "govern",
    "governed",
    "tool_call",
]
