"""Tools of agent frameworks, governed. Each module needs its framework, and nothing else does.

What a model asked for and may not have is told to the model as the tool's error, in the words of the
policy. The tool has not run.
"""

from __future__ import annotations

from ..errors import AegisError, ApprovalRequired, Denied

__all__ = ["told"]


def told(error: AegisError) -> str:
    """What a model is told."""
    if isinstance(error, Denied):
        return f"Not allowed: {error.message} The tool has not run."
    if isinstance(error, ApprovalRequired):
        return (
            f"Not yet: {error.message} A human must approve it (approval {error.approval}). The tool has not run; "
            "the same call can be made again once it is approved."
        )
    return "Not possible now: the governance of this agent is out of reach. The tool has not run."
