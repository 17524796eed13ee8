"""How TGI 3.3.7 reports what went wrong (router/src/server.rs, router/src/infer/mod.rs)."""


class ApiError(Exception):
    """An answer `{"error", "error_type"}` with its status; counted in tgi_request_failure as `cause`."""

    def __init__(self, status: int, kind: str, message: str, cause: str | None = None) -> None:
        self.status = status
        self.kind = kind
        self.message = message
        self.cause = cause
        super().__init__(message)

    def body(self) -> dict[str, str]:
        """The JSON object."""
        return {"error": self.message, "error_type": self.kind}


class BodyError(Exception):
    """A body that the web framework refuses before TGI sees it: plain text, counted nowhere."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


def invalid(message: str) -> ApiError:
    """A ValidationError."""
    return ApiError(422, "validation", f"Input validation error: {message}", "validation")


def overloaded() -> ApiError:
    """No permit is free."""
    return ApiError(429, "overloaded", "Model is overloaded", "overloaded")


def tool_error(message: str) -> ApiError:
    """Tools that cannot be used."""
    return ApiError(422, "tool_error", f"Tool error: {message}", "validation")
