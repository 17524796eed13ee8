import itertools
import json
import random
from collections import defaultdict
from typing import Any

import oracle
import pytest
import requests_corpus as corpus
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.key import CanonicalKeyer
from trimtab.sidecar.cache.request import read_call
from trimtab.sidecar.config import Identity
from trimtab.sidecar.interfaces import BadBodyError, Key, NotCacheable, Route

IDENTITY = Identity(model="m", revision="r", quantization="awq", engine="tgi-3.3.7", template="t")
KEYER = CanonicalKeyer(IDENTITY, secret=b"s", policy="all", partitioned=lambda scope: scope != b"opted out")
CAREFUL = CanonicalKeyer(IDENTITY, secret=b"s")
ROUTES = ("generate", "generate_stream", "compat", "chat", "completions")


def keyed(route: str, raw: bytes, keyer: CanonicalKeyer = KEYER, scope: bytes = b"a") -> Key | NotCacheable:
    return keyer.key(read_call(Route(route), raw), scope, store_sampled=False)


def digest(route: str, body: Any, **more: Any) -> bytes:
    key = keyed(route, corpus.encode(body), **more)
    assert isinstance(key, Key)
    return key.digest


@pytest.mark.parametrize("route", ROUTES)
def test_no_changed_request_meets_the_answer_of_one_that_the_engine_sees_differently(route: str) -> None:
    views: dict[bytes, Any] = {}
    texts: dict[bytes, bytes] = {}
    count = 0
    full, small = corpus.FULL[route], corpus.SMALL[route]
    changes = [corpus.mutations(full), corpus.mutations(small), corpus.additions(small, full)]
    for what, body in itertools.chain([("full", full), ("small", small)], *changes):
        raw = corpus.encode(body)
        key = keyed(route, raw)
        if isinstance(key, NotCacheable):
            continue
        count += 1
        seen = oracle.view(route, raw)
        assert views.setdefault(key.digest, seen) == seen, (what, texts[key.digest], raw)
        texts.setdefault(key.digest, raw)
    assert count > 300
    assert len(views) > count / 3  # most changes are seen by the engine


@pytest.mark.parametrize("route", ROUTES)
def test_requests_that_the_engine_sees_alike_share_a_key(route: str) -> None:
    by_view: dict[Any, set[bytes]] = defaultdict(set)
    full, small = corpus.FULL[route], corpus.SMALL[route]
    for body in [full, small, *(b for _, b in [*corpus.mutations(full), *corpus.additions(small, full)])]:
        raw = corpus.encode(body)
        key = keyed(route, raw)
        if isinstance(key, Key):
            by_view[oracle.view(route, raw)].add(key.digest)
    assert all(len(digests) == 1 for digests in by_view.values())


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_deterministic_agrees_with_the_plain_reading(route: str) -> None:
    full, small = corpus.FULL[route], corpus.SMALL[route]
    outcomes = set()
    for what, body in [*corpus.mutations(full), *corpus.mutations(small), *corpus.additions(small, full)]:
        raw = corpus.encode(body)
        careful, greedy = keyed(route, raw, CAREFUL), oracle.deterministic(route, raw)
        outcomes.add(greedy)
        if isinstance(careful, Key):
            assert greedy, what
        elif careful.reason == "sampling":
            assert not greedy, what
        else:
            assert isinstance(keyed(route, raw), NotCacheable), what
    assert outcomes == {True, False}


def test_an_absent_parameters_object_is_not_an_empty_one() -> None:
    assert keyed("generate", b'{"inputs":"a"}', CAREFUL) == NotCacheable("sampling")
    assert isinstance(keyed("generate", b'{"inputs":"a","parameters":{}}', CAREFUL), Key)
    assert digest("generate", {"inputs": "a"}) != digest("generate", {"inputs": "a", "parameters": {}})


def test_an_omitted_temperature_is_not_zero_for_openai_routes() -> None:
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert keyed("chat", corpus.encode(body), CAREFUL) == NotCacheable("sampling")
    assert isinstance(keyed("chat", corpus.encode({**body, "temperature": 0}), CAREFUL), Key)
    assert isinstance(keyed("chat", corpus.encode({**body, "temperature": 1.5, "seed": 1}), CAREFUL), Key)
    assert keyed("chat", corpus.encode({**body, "temperature": 0, "top_p": 0.5}), CAREFUL) == NotCacheable("sampling")


def shuffled(value: Any, rng: random.Random) -> Any:
    """Typed places of a chat request in another order, white space and escapes written differently by the caller."""
    items = list(value.items())
    rng.shuffle(items)
    return dict(items)


def test_equal_json_in_another_order_and_spelling_is_the_same_key() -> None:
    rng = random.Random(5)
    body = corpus.CHAT
    want = digest("chat", body)
    for _ in range(50):
        other = shuffled(body, rng)
        other["messages"] = [shuffled(message, rng) for message in other["messages"]]
        other["tools"] = [
            shuffled({**tool, "function": shuffled(tool["function"], rng)}, rng) for tool in other["tools"]
        ]
        other["tool_choice"] = shuffled(other["tool_choice"], rng)
        other["response_format"] = shuffled(other["response_format"], rng)
        raw = json.dumps(other, indent=rng.choice([None, 1]), ensure_ascii=rng.choice([True, False])).encode()
        key = keyed("chat", raw)
        assert isinstance(key, Key) and key.digest == want


def test_the_order_of_properties_in_a_schema_counts() -> None:
    grammar = {"type": "json", "value": {"properties": {"a": {}, "b": {}}}}
    other = {"type": "json", "value": {"properties": {"b": {}, "a": {}}}}
    bodies = [{"inputs": "x", "parameters": {"grammar": g}} for g in (grammar, other)]
    assert digest("generate", bodies[0]) != digest("generate", bodies[1])


def test_everything_outside_the_body_separates_answers() -> None:
    raw = corpus.encode(corpus.SMALL["chat"])
    streamed = corpus.encode({**corpus.SMALL["chat"], "stream": True})
    seen = [keyed("chat", raw), keyed("chat", raw, scope=b"b"), keyed("chat", streamed)]
    for change in ("model", "revision", "quantization", "engine", "template"):
        seen.append(keyed("chat", raw, CanonicalKeyer(IDENTITY.model_copy(update={change: "other"}), secret=b"s")))
    seen.append(keyed("chat", raw, CanonicalKeyer(IDENTITY, secret=b"other")))
    digests = [key.digest for key in seen if isinstance(key, Key)]
    assert len(set(digests)) == len(digests) == len(seen)
    native = corpus.encode({"inputs": "x", "parameters": {}})
    assert len({digest(route, json.loads(native)) for route in ("generate", "generate_stream", "compat")}) == 3


def test_parts_of_the_identity_do_not_run_together() -> None:
    raw = corpus.encode(corpus.SMALL["chat"])
    one = keyed("chat", raw, CanonicalKeyer(Identity(model="ab", revision="c")))
    two = keyed("chat", raw, CanonicalKeyer(Identity(model="a", revision="bc")))
    assert one != two


@given(a=st.binary(max_size=12), b=st.binary(max_size=12))
def test_no_two_scopes_share_a_key(a: bytes, b: bytes) -> None:
    raw = corpus.encode(corpus.SMALL["chat"])
    assert (keyed("chat", raw, scope=a) == keyed("chat", raw, scope=b)) == (a == b)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, -1.0, 0.5])
    | st.text("ab\u0301 ", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "type", "function"]), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = sorted({name for body in corpus.FULL.values() for name in body} | set(corpus.PARAMETERS))


@given(
    route=st.sampled_from(ROUTES),
    one=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    changes=st.lists(st.tuples(st.sampled_from(NAMES), JSON | st.just(...)), max_size=3),
    nested=st.booleans(),
)
def test_keys_are_equal_exactly_when_the_views_are(
    route: str, one: dict[str, Any], changes: list[tuple[str, Any]], nested: bool
) -> None:
    two = dict(one)
    for name, value in changes:
        if value is ...:
            two.pop(name, None)
        else:
            two[name] = value
    if nested and route not in ("chat", "completions"):
        one, two = {"inputs": "x", "parameters": one}, {"inputs": "x", "parameters": two}
    raws = corpus.encode(one), corpus.encode(two)
    keys = [keyed(route, raw) for raw in raws]
    if all(isinstance(key, Key) for key in keys):
        assert (keys[0] == keys[1]) == (oracle.view(route, raws[0]) == oracle.view(route, raws[1]))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b'{"inputs":"a","parameters":{"seed":18446744073709551616}}', "number", id="beyond 64 bits"),
        pytest.param(b'{"inputs":"a","parameters":{"x":1e999}}', "number", id="infinite"),
        pytest.param(b'{"inputs":"a","parameters":{"x":[[-1e999]]}}', "number", id="infinite and nested"),
        pytest.param(b'{"inputs":"a","parameters":{"seed":-0}}', "number", id="minus zero"),
        pytest.param(b'{"inputs":"![](https://x/cat.png) a","parameters":{}}', "remote-image", id="linked image"),
        pytest.param(
            b'{"inputs":"![](data:image/png;base64,AA) !\\u005b](h\\u0074tp://x)","parameters":{}}',
            "remote-image",
            id="second and escaped link",
        ),
    ],
)
def test_native_bodies_that_cannot_be_keyed_safely_bypass(raw: bytes, reason: str) -> None:
    assert keyed("generate", raw) == NotCacheable(reason)


def test_an_infinity_never_passes_for_null() -> None:
    assert isinstance(keyed("generate", b'{"inputs":"a","parameters":{"x":null}}'), Key)
    assert keyed("generate", b'{"inputs":"a null","parameters":{"x":1e999}}') == NotCacheable("number")


@pytest.mark.parametrize(
    ("chunk", "cacheable"),
    [
        pytest.param({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, True, id="inline"),
        pytest.param({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, False, id="remote"),
        pytest.param({"type": "image_url", "image_url": "https://x/y.png"}, False, id="remote, short form"),
        pytest.param({"type": "image_url", "image_url": None}, False, id="senseless"),
    ],
)
def test_images_are_keyed_only_when_they_are_in_the_request(chunk: dict[str, Any], cacheable: bool) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, chunk]}], "temperature": 0}
    assert isinstance(keyed("chat", corpus.encode(body)), Key) is cacheable


@pytest.mark.parametrize("route", ["invocations", "vertex", "other"])
def test_routes_of_unknown_shape_are_never_cached(route: str) -> None:
    assert keyed(route, b'{"inputs":"x","parameters":{}}') == NotCacheable("route")


def test_both_names_of_one_field_are_ambiguous() -> None:
    body = {**corpus.SMALL["chat"], "max_tokens": None, "max_completion_tokens": 5}
    assert keyed("chat", corpus.encode(body)) == NotCacheable("ambiguous")


def chat(*messages: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in messages], "temperature": 0, **more}


def partition(body: dict[str, Any], scope: bytes = b"a") -> bytes:
    key = keyed("chat", corpus.encode(body), scope=scope)
    assert isinstance(key, Key)
    return key.partition


def test_a_partition_differs_in_nothing_but_the_last_users_text() -> None:
    base = chat(("system", "S"), ("user", "old"), ("assistant", "ok"), ("user", "new"))
    assert partition(base) == partition(chat(("system", "S"), ("user", "old"), ("assistant", "ok"), ("user", "other")))
    others = [
        chat(("system", "S2"), ("user", "old"), ("assistant", "ok"), ("user", "new")),
        chat(("system", "S"), ("user", "old2"), ("assistant", "ok"), ("user", "new")),
        chat(("system", "S"), ("user", "old"), ("assistant", "ok"), ("user", "new"), tools=[corpus.TOOL]),
        chat(("system", "S"), ("user", "old"), ("assistant", "ok"), ("user", "new"), stream=True),
        chat(("system", "S"), ("user", "old"), ("assistant", "ok"), ("user", "new"), max_tokens=5),
    ]
    seen = {partition(body) for body in others} | {partition(base, scope=b"b")}
    assert len(seen) == len(others) + 1 and partition(base) not in seen and b"" not in seen


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(chat(("assistant", "x")), id="no user's message last"),
        pytest.param(chat(("user", [{"type": "text", "text": "x"}])), id="structured content"),
        pytest.param(chat(), id="no message"),
    ],
)
def test_other_requests_have_no_partition(body: dict[str, Any]) -> None:
    assert partition(body) == b""


@given(raw=st.binary(max_size=100))
def test_arbitrary_bytes_never_break_the_keyer(raw: bytes) -> None:
    for route in Route:
        try:
            call = read_call(route, raw)
        except BadBodyError:
            continue
        assert isinstance(KEYER.key(call, b"a"), Key | NotCacheable)
