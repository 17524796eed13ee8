"""Builds the parts that a configuration asks for."""

import json
from typing import Any

from trimtab.sidecar.config import Config
from trimtab.sidecar.gateway import Parts
from trimtab.sidecar.interfaces import BadBodyError, Call, Route


def read_call(route: Route, raw: bytes) -> Call:
    try:
        body: Any = json.loads(raw)
    except ValueError as error:
        raise BadBodyError(str(error)) from None
    if not isinstance(body, dict):
        raise BadBodyError("the body is no object")
    return Call(route=route, raw=raw, body=body, stream=bool(body.get("stream")))


def build_parts(config: Config) -> Parts:
    return Parts(read_call=read_call)
