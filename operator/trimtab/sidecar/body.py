"""Request bodies: a known length, or a strict decoder of the chunked transfer coding (RFC 9112, 7.1)."""

from trimtab.sidecar.errors import RefusedError

_HEX = frozenset(b"0123456789abcdefABCDEF")
MAX_CHUNK_LINE = 256
MAX_TRAILERS = 4096


class SizedBody:
    """Collects exactly `length` bytes."""

    __slots__ = ("_missing", "_parts", "held")

    def __init__(self, length: int) -> None:
        self._parts: list[bytes] = []
        self._missing = length
        self.held = length  # accounted from the start: the client has announced it

    def feed(self, data: bytes) -> bytes | None:
        """Take what belongs to the body; the bytes after it once it is complete, else None."""
        if len(data) < self._missing:
            self._parts.append(data)
            self._missing -= len(data)
            return None
        self._parts.append(data[: self._missing])
        rest = data[self._missing :]
        self._missing = 0
        return rest

    def take(self) -> bytes:
        """The whole body."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class ChunkedBody:
    """Decodes chunks up to `limit` bytes of data. Bare LF, signs, blanks and missing CRLF are refused."""

    __slots__ = ("_in", "_left", "_limit", "_parts", "_state", "_trailers", "held")

    def __init__(self, limit: int) -> None:
        self._in = bytearray()
        self._parts: list[bytes] = []
        self._limit = limit
        self._left = 0
        self._state = "size"
        self._trailers = 0
        self.held = 0

    def feed(self, data: bytes) -> bytes | None:
        """As SizedBody.feed. Raises RefusedError."""
        self._in += data
        while True:
            if self._state == "data":
                if not self._read_data():
                    return None
                continue
            line = self._line()
            if line is None:
                return None
            if self._state == "size":
                self._left = self._size(line)
                self.held += self._left
                if self.held > self._limit:
                    raise RefusedError(413, "body_size", f"the body is longer than {self._limit} bytes")
                self._state = "data" if self._left else "trailers"
            elif self._trailer_ends(line):
                return bytes(self._in)

    def _read_data(self) -> bool:
        """One piece of the current chunk and its CRLF; False when more input is needed."""
        if self._left:
            piece = bytes(self._in[: self._left])
            if not piece:
                return False
            del self._in[: len(piece)]
            self._parts.append(piece)
            self._left -= len(piece)
            return True
        if len(self._in) < 2:
            return False
        if self._in[:2] != b"\r\n":
            raise RefusedError(400, "malformed", "a chunk is not followed by CRLF")
        del self._in[:2]
        self._state = "size"
        return True

    def _line(self) -> bytes | None:
        end = self._in.find(b"\n")
        if end < 0 and len(self._in) <= MAX_CHUNK_LINE:
            return None
        if end < 1 or end > MAX_CHUNK_LINE or self._in[end - 1] != 0x0D:
            raise RefusedError(400, "malformed", "a chunk's line is too long or does not end with CRLF")
        line = bytes(self._in[: end - 1])
        del self._in[: end + 1]
        if b"\r" in line or b"\0" in line:
            raise RefusedError(400, "malformed", "a chunk's line holds control characters")
        return line

    @staticmethod
    def _size(line: bytes) -> int:
        digits = line.partition(b";")[0].rstrip(b" \t") if b";" in line else line
        if not 1 <= len(digits) <= 8 or not _HEX.issuperset(digits):
            raise RefusedError(400, "malformed", "a chunk's size is one to eight hexadecimal digits")
        return int(digits, 16)

    def _trailer_ends(self, line: bytes) -> bool:
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise RefusedError(431, "headers", "too many trailer fields")
        return not line  # trailer fields are dropped (RFC 9110, 6.5.1)

    def take(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts)
