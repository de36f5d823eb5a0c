"""What is asked and what is answered, in the words of AuthZEN's Authorization API 1.0."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, Mapping

from .errors import ApprovalRequired, Denied, Unavailable

__all__ = ["LOCAL", "Decision", "Event", "Outcome", "Question", "tool_call"]

Outcome = Literal["success", "failure", "unknown"]
"""How an allowed action ended."""

LOCAL = "local"
"""The server of functions that belong to no server."""


@dataclass(frozen=True)
class Question:
    """May the calling process do this? Who that is, the operating system tells the daemon."""

    method: str
    """`tools/call`, `prompts/get`, `resources/read`, `file.read`, `file.write`, `shell.exec`, `http.request`."""
    resource_type: str
    """What the method acts on: `tool`, `prompt`, `resource`, `file`, `command`, `url`."""
    resource_id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    server: str = LOCAL
    namespace: str | None = None
    approval: str | None = None
    """The approval that was waited for, if there was one."""

    def body(self) -> bytes:
        """The AuthZEN request. What JSON cannot say exactly is not judged, so it is not sent."""
        properties = {"server": self.server}
        if self.namespace is not None:
            properties["namespace"] = self.namespace
        request: dict[str, Any] = {
            "subject": {"type": "agent", "id": "self"},
            "action": {"name": self.method, "properties": dict(self.arguments)},
            "resource": {"type": self.resource_type, "id": self.resource_id, "properties": properties},
        }
        if self.approval is not None:
            request["context"] = {"approval": self.approval}
        try:
            return json.dumps(request, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Denied(
                "malformed_message",
                f"The arguments of {self.resource_id} cannot be judged, because JSON cannot say them: {error}. "
                "Give `arguments=` a function that says what is to be judged.",
            ) from None


def tool_call(tool: str, arguments: Mapping[str, Any] | None = None, *, server: str = LOCAL) -> Question:
    """The call of a tool."""
    return Question("tools/call", "tool", tool, arguments or {}, server)


@dataclass(frozen=True)
class Decision:
    """The answer to one question."""

    allowed: bool
    verdict: str
    """`allow`, `require_approval` or `deny`."""
    reason: str
    message: str
    decision_id: str | None = None
    approval: str | None = None
    index: int | None = None

    @classmethod
    def read(cls, status: int, body: bytes) -> Decision:
        """Reads an answer. Nothing but a well-formed `"decision": true` allows."""
        answer = object_of(body)
        if status == 200 and isinstance(answer.get("decision"), bool):
            context = answer.get("context")
            if isinstance(context, dict):
                allowed = answer["decision"] and context.get("verdict") == "allow"
                return cls(
                    allowed,
                    str(context.get("verdict", "deny")),
                    str(context.get("reason", "")),
                    str(context.get("message", "")),
                    context.get("decision_id"),
                    context.get("approval"),
                    context.get("index"),
                )
        raise refusal(status, answer)

    def check(self) -> Decision:
        """This decision, if it allows.

        Raises `ApprovalRequired` or `Denied` otherwise.
        """
        if self.allowed:
            return self
        if self.verdict == "require_approval" and self.approval is not None:
            raise ApprovalRequired(self.approval, self.reason, self.message, self.decision_id, self.index)
        raise Denied(self.reason, self.message, self.decision_id, self.index)


@dataclass(frozen=True)
class Event:
    """Something that the daemon told without being asked."""

    name: str
    """`policy`, `lost`, or the kind of an entry: `decision`, `outcome`, `approval_vote` and so on."""
    data: Mapping[str, Any]
    id: str | None = None


def refusal(status: int, answer: Mapping[str, Any]) -> Denied | Unavailable:
    """What an answer that is no decision means."""
    message, reason = answer.get("message"), answer.get("reason")
    if 400 <= status < 500 and isinstance(message, str) and isinstance(reason, str):
        return Denied(reason, message)
    said = message if isinstance(message, str) else "it said nothing that can be understood"
    return Unavailable(f"the Aegis daemon answered {status}: {said}")


def object_of(body: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for whatever is none."""
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def outcome_body(decision_id: str, result: Outcome) -> bytes:
    """The report of an outcome."""
    return json.dumps({"decision_id": decision_id, "result": result}).encode()
