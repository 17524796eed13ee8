"""What the watches have seen, trimmed, by kind and name; and our own writes, before the watches bring them back."""

from collections.abc import Callable, Iterator

from trimtab.controller.kube import Listing
from trimtab.controller.objects import (
    CHILD_KINDS,
    LLM_DEPLOYMENT,
    NODE,
    POD,
    Key,
    Kind,
    Manifest,
    Ref,
    parent_of,
    ref_of,
    resource_version,
    trimmed,
)
from trimtab.resources.identity import shortened


class ObjectCache:
    """Newest known state of the watched objects.

    An object older than what is known is ignored: so a reconcile that follows a write sees that write, however late
    the watch is. `on_change` is called with the LLMDeployment concerned, or None when a node changed.
    """

    def __init__(self, on_change: Callable[[Key | None], None] | None = None) -> None:
        self._objects: dict[Kind, dict[Ref, Manifest]] = {}
        self._children: dict[Key, set[Ref]] = {}
        self._removed: dict[Ref, int] = {}
        self._by_label: dict[Key, Key] = {}
        self.on_change = on_change or (lambda _key: None)

    def record(self, kind: Kind, manifest: Manifest, *, quiet: bool = False) -> None:
        """An object as the watch or (`quiet`: no visit is needed) a write of ours returned it."""
        ref, version = ref_of(manifest, kind), resource_version(manifest)
        known = self.get(ref)
        if known is not None and resource_version(known) >= version:
            return
        # A late event of an object that is already known to be gone must not bring it back.
        if version <= self._removed.get(ref, -1):
            return
        self._removed.pop(ref, None)
        kept = trimmed(kind, manifest)
        self._store(ref, kept)
        # Nodes report all the time that nothing changed.
        if not quiet and not (kind == NODE and known is not None and _content(known) == _content(kept)):
            self._changed(kind, manifest)

    def remove(self, kind: Kind, manifest: Manifest) -> None:
        """An object that was deleted; `manifest` is its last state."""
        ref, version = ref_of(manifest, kind), resource_version(manifest)
        known = self.get(ref)
        if known is not None and resource_version(known) > version and _uid(known) != _uid(manifest):
            return
        self.drop(ref, version)
        self._changed(kind, manifest)

    def drop(self, ref: Ref, version: int = 0) -> None:
        """Forget an object that turned out not to exist."""
        known = self._objects.get(ref.kind, {}).pop(ref, None)
        if known is None:
            return
        parent = parent_of(ref.kind, known)
        if parent is not None and ref.kind == LLM_DEPLOYMENT:
            self._by_label.pop(label_key(parent), None)
        elif parent is not None:
            refs = self._children.get(parent, set())
            refs.discard(ref)
            if not refs:
                self._children.pop(parent, None)
        self._removed[ref] = max(version, resource_version(known))
        if len(self._removed) > 4096:
            del self._removed[next(iter(self._removed))]

    def replace_all(self, kind: Kind, listing: Listing, namespace: str | None = None) -> None:
        """A full listing: objects that it lacks and that are not newer than it are gone."""
        listed = {ref_of(item, kind) for item in listing.items}
        for ref, known in list(self._objects.get(kind, {}).items()):
            in_scope = namespace is None or ref.namespace == namespace
            if in_scope and ref not in listed and resource_version(known) <= listing.resource_version:
                self.drop(ref, listing.resource_version)
                self._changed(kind, known)
        for item in listing.items:
            self.record(kind, item)

    def get(self, ref: Ref) -> Manifest | None:
        """One object; None when it is not known."""
        return self._objects.get(ref.kind, {}).get(ref)

    def resource(self, key: Key) -> Manifest | None:
        """The LLMDeployment of a key."""
        return self.get(Ref(LLM_DEPLOYMENT, key.namespace, key.name))

    def all_keys(self) -> tuple[Key, ...]:
        """All LLMDeployments."""
        return tuple(Key(ref.namespace or "", ref.name) for ref in self._objects.get(LLM_DEPLOYMENT, {}))

    def children(self, key: Key) -> tuple[tuple[Ref, Manifest], ...]:
        """Objects labelled as belonging to an LLMDeployment, without pods."""
        return tuple((ref, found) for ref, found in self._below(key) if ref.kind in CHILD_KINDS)

    def pods(self, key: Key) -> tuple[Manifest, ...]:
        """Pods labelled as belonging to an LLMDeployment, by name."""
        return tuple(found for ref, found in self._below(key) if ref.kind == POD)

    def nodes(self) -> tuple[Manifest, ...]:
        """All nodes, by name."""
        return tuple(node for _, node in sorted(self._objects.get(NODE, {}).items(), key=lambda pair: pair[0].name))

    def counts(self) -> dict[str, int]:
        """Number of objects by kind."""
        return {kind.name: len(found) for kind, found in self._objects.items()}

    def _below(self, key: Key) -> Iterator[tuple[Ref, Manifest]]:
        for ref in sorted(self._children.get(label_key(key), ()), key=lambda ref: (ref.kind.name, ref.name)):
            found = self.get(ref)
            if found is not None:
                yield ref, found

    def _store(self, ref: Ref, manifest: Manifest) -> None:
        self._objects.setdefault(ref.kind, {})[ref] = manifest
        parent = parent_of(ref.kind, manifest)
        if parent is None:
            return
        if ref.kind == LLM_DEPLOYMENT:
            self._by_label[label_key(parent)] = parent
        else:
            self._children.setdefault(parent, set()).add(ref)

    def _changed(self, kind: Kind, manifest: Manifest) -> None:
        parent = parent_of(kind, manifest)
        if parent is not None or kind == NODE:
            self.on_change(self._by_label.get(parent, parent) if parent is not None else None)


def label_key(key: Key) -> Key:
    """What the label of the children says: long names do not fit into a label as they are."""
    return Key(key.namespace, shortened(key.name))


def _content(node: Manifest) -> tuple[object, ...]:
    return node["metadata"].get("labels"), node.get("spec"), node.get("status")


def _uid(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("uid", ""))
