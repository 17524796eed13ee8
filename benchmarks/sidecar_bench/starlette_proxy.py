"""The gateway that one writes in an afternoon: Starlette on uvicorn, httpx to the engine, a dictionary as cache."""

import hashlib
import json
import os

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

UPSTREAM = os.environ["BENCH_UPSTREAM"]
client = httpx.AsyncClient(base_url=UPSTREAM, limits=httpx.Limits(max_connections=2000), timeout=60)
cache: dict[str, tuple[bytes, str]] = {}


async def proxy(request: Request) -> Response:
    body = await request.body()
    document = json.loads(body)
    key = hashlib.sha256(request.url.path.encode() + json.dumps(document, sort_keys=True).encode()).hexdigest()
    if key in cache:
        content, kind = cache[key]
        return Response(content, media_type=kind)
    headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
    if document.get("stream"):
        built = client.build_request("POST", request.url.path, content=body, headers=headers)
        answer = await client.send(built, stream=True)
        return StreamingResponse(answer.aiter_raw(), media_type="text/event-stream")
    answer = await client.post(request.url.path, content=body, headers=headers)
    cache[key] = (answer.content, "application/json")
    return Response(answer.content, media_type="application/json")


app = Starlette(routes=[Route("/{path:path}", proxy, methods=["POST"])])
