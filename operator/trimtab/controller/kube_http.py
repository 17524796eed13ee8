"""The Kubernetes API over `kubernetes.aio`: its connection, credentials and TLS, with plain manifests on top."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from trimtab.controller.kube import FIELD_MANAGER, Listing, NotFound, TokenBucket, failure_for
from trimtab.controller.objects import Kind, Manifest, Ref, kind_of, ref_of

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_PAGE = "500"

CallCounter = Callable[[str, str, int], None]
"""Called after every request with verb, kind and HTTP status (0: no answer)."""


class HttpKubeClient:
    """KubeClient for a real API server. Each request ends within `timeout` seconds and is sent once: retrying is the
    queue's work, which knows about back-off and about the other objects."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        timeout: float = 10.0,
        queries_per_second: float = 20.0,
        burst: float = 50.0,
        on_call: CallCounter | None = None,
    ) -> None:
        self._api = ApiClient(configuration)
        self._api.user_agent = FIELD_MANAGER
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(5.0, timeout))
        self._bucket = TokenBucket(queries_per_second, burst)
        self._on_call = on_call or (lambda _verb, _kind, _code: None)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, ref: Ref) -> Manifest:
        return await self._request("GET", "get", ref.kind, _path(ref))

    async def list_all(self, kind: Kind, namespace: str | None = None, label_selector: str = "") -> Listing:
        query = {"limit": _PAGE}
        if label_selector:
            query["labelSelector"] = label_selector
        items: list[Manifest] = []
        while True:
            page = await self._request("GET", "list", kind, kind.path(namespace), query)
            items += ({"apiVersion": kind.api_version, "kind": kind.name} | item for item in page.get("items") or ())
            following = page["metadata"].get("continue")
            if not following:
                return Listing(tuple(items), int(page["metadata"]["resourceVersion"]))
            query["continue"] = following

    async def apply(self, manifest: Manifest, *, force: bool = True) -> Manifest:
        ref = ref_of(manifest)
        return await self._request("PATCH", "apply", ref.kind, _path(ref), _apply_query(force), manifest, _APPLY)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        ref = ref_of(manifest)
        path = _path(ref, "status")
        return await self._request("PATCH", "apply_status", ref.kind, path, _apply_query(force=True), manifest, _APPLY)

    async def create(self, manifest: Manifest) -> Manifest:
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"].get("namespace"))
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("POST", "create", kind, path, query, manifest, "application/json")

    async def replace(self, manifest: Manifest) -> Manifest:
        ref = ref_of(manifest)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PUT", "replace", ref.kind, _path(ref), query, manifest, "application/json")

    async def merge_patch(self, ref: Ref, patch: Manifest) -> Manifest:
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PATCH", "patch", ref.kind, _path(ref), query, patch, _MERGE)

    async def delete(self, ref: Ref, *, uid: str | None = None) -> None:
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._request("DELETE", "delete", ref.kind, _path(ref), {}, options, "application/json")
        except NotFound:
            return

    async def _request(
        self,
        method: str,
        verb: str,
        kind: Kind,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str | None = None,
    ) -> Manifest:
        await asyncio.sleep(self._bucket.take(asyncio.get_running_loop().time()))
        what = f"{verb} {path}"
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        try:
            code, data, retry_after = await self._send(method, path, query or {}, headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as broken:
            self._on_call(verb, kind.name, 0)
            raise failure_for(what, 0, {"reason": "NoAnswer", "message": _words(broken)}) from broken
        self._on_call(verb, kind.name, code)
        answer: Manifest = _parsed(data)
        if code >= 300:
            raise failure_for(what, code, answer, retry_after)
        return answer

    async def _send(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: Manifest | None
    ) -> tuple[int, bytes, float | None]:
        serialized = await self._api.param_serialize(
            method, path, query_params=list(query.items()), header_params=headers, auth_settings=["BearerToken"]
        )
        _, url, header_params, _, _ = serialized
        response = await self._api.call_api(method, url, header_params, body, _request_timeout=self._timeout)
        data: bytes = await response.read()
        asked = response.getheader("Retry-After")
        return response.status, data, float(asked) if asked and asked.isdecimal() else None


def _path(ref: Ref, subresource: str | None = None) -> str:
    return ref.kind.path(ref.namespace, quote(ref.name, safe=""), subresource)


def _apply_query(force: bool) -> dict[str, str]:
    return {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace")}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
