"""Errors that the sidecar answers itself, in the shape of the API that the client speaks."""

import json
from dataclasses import dataclass

from trimtab.sidecar.interfaces import Route

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    417: "Expectation Failed",
    422: "Unprocessable Entity",
    424: "Failed Dependency",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is an error.

    `kind` is the machine-readable type in the body, `reason` the metric label (default: the kind); `retry_after` is in
    whole seconds; `raw` is a ready body that replaces the one made from `message` (an error the engine worded itself).
    """

    status: int
    kind: str
    message: str
    retry_after: int | None = None
    raw: bytes | None = None
    reason: str = ""

    def body(self, route: Route) -> bytes:
        """JSON of the error: TGI's `{"error", "error_type"}`, or OpenAI's `{"error": {…}}` on OpenAI's routes."""
        if self.raw is not None:
            return self.raw
        if route.openai:
            error = {
                "message": self.message,
                "type": self.kind,
                "param": None,
                "code": self.kind,
                "http_status_code": self.status,
            }
            return json.dumps({"error": error}).encode()
        return json.dumps({"error": self.message, "error_type": self.kind}).encode()

    def event(self, route: Route) -> bytes:
        """The error as an event of a stream that has begun."""
        return b"data: " + self.body(route) + b"\n\n"


class RefusedError(Exception):
    """A request that is answered with an error and whose connection is then closed: its end cannot be trusted."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(status, kind, message)


def response_bytes(
    failure: Failure, route: Route, *, close: bool, head_only: bool = False, extra: bytes = b""
) -> bytes:
    """A complete HTTP/1.1 response; `extra` holds further header lines, each ended by CRLF."""
    body = failure.body(route)
    lines = [
        b"HTTP/1.1 %d %s\r\n" % (failure.status, REASONS.get(failure.status, "Error").encode()),
        b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
        extra,
    ]
    if failure.retry_after is not None:
        lines.append(b"retry-after: %d\r\n" % failure.retry_after)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)
