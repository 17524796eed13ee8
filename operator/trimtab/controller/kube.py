"""What the controller asks of the Kubernetes API, and the ways in which that fails."""

from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.controller.objects import Kind, Manifest, Ref

FIELD_MANAGER = "trimtab"


class ApiFailure(Exception):  # noqa: N818 - a failure of the other side, not an error in this program
    """The API server did not do what was asked.

    `code` is the HTTP status (0: no answer), `reason` the word of the API's Status object, `retry_after` the least
    number of seconds that the server asks to wait.
    """

    retry_after: float | None = None

    def __init__(self, what: str, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        self.what = what
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        super().__init__(f"{what}: {code} {reason}: {message}")


class Conflict(ApiFailure):
    """Somebody else owns a field, or the object changed or was replaced meanwhile (409)."""


class AlreadyExists(Conflict):
    """The name is taken (409)."""


class Forbidden(ApiFailure):
    """The operator may not do this (401, 403)."""


class NotFound(ApiFailure):
    """There is no such object (404)."""


class Refused(ApiFailure):
    """The API server or a webhook holds the object to be wrong (400, 422)."""


class Throttled(ApiFailure):
    """Too many requests (429)."""


class Unavailable(ApiFailure):
    """No answer, or an answer of 500 and above."""


def failure_for(what: str, code: int, status: dict[str, Any], retry_after: float | None = None) -> ApiFailure:
    """The failure that an answer means; `status` is the API's Status object, or {}."""
    reason = str(status.get("reason") or "")
    message = str(status.get("message") or "")
    asked = retry_after if retry_after is not None else (status.get("details") or {}).get("retryAfterSeconds")
    kinds: dict[int, type[ApiFailure]] = {
        400: Refused,
        401: Forbidden,
        403: Forbidden,
        404: NotFound,
        409: AlreadyExists if reason == "AlreadyExists" else Conflict,
        410: Conflict,
        415: Refused,
        422: Refused,
        429: Throttled,
    }
    failure = kinds.get(code, Unavailable if code == 0 or code >= 500 else ApiFailure)
    return failure(what, code, reason, message, float(asked) if asked is not None else None)


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects of one kind at one moment."""

    items: tuple[Manifest, ...]
    resource_version: int


class KubeClient(Protocol):
    """Plain manifests in and out; every call raises ApiFailure when it fails. The real client and the tests' fake."""

    async def get(self, ref: Ref) -> Manifest:
        """One object."""

    async def list_all(self, kind: Kind, namespace: str | None = None, label_selector: str = "") -> Listing:
        """All objects of a kind, in one namespace or everywhere."""

    async def apply(self, manifest: Manifest, *, force: bool = True) -> Manifest:
        """Server-side apply as `FIELD_MANAGER`; the object as stored.

        Force takes over fields from other managers: right for our own children, never for objects of users.
        """

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Server-side apply of the status; Conflict unless `metadata.resourceVersion` is the current one."""

    async def create(self, manifest: Manifest) -> Manifest:
        """A new object; AlreadyExists when the name is taken."""

    async def replace(self, manifest: Manifest) -> Manifest:
        """The whole object; Conflict unless `metadata.resourceVersion` is the current one."""

    async def merge_patch(self, ref: Ref, patch: Manifest) -> Manifest:
        """JSON merge patch."""

    async def delete(self, ref: Ref, *, uid: str | None = None) -> None:
        """Delete in the background; with `uid` only that very object. Deleting what is gone is no failure."""


@dataclass(slots=True)
class TokenBucket:
    """Client-side limit: `rate` tokens a second, at most `burst` saved up. Times are seconds of any one clock."""

    rate: float
    burst: float
    tokens: float = 0.0
    updated: float | None = None

    def take(self, now: float) -> float:
        """Take one token; the seconds to wait before using it (0 while there are some)."""
        if self.updated is None:
            self.tokens, self.updated = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.updated) * self.rate)
        self.updated = now
        self.tokens -= 1
        return 0.0 if self.tokens >= 0 else -self.tokens / self.rate

    def try_take(self, now: float) -> bool:
        """Take one token if there is one."""
        wait = self.take(now)
        if wait > 0:
            self.tokens += 1
        return wait <= 0
