import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.request import read_call
from trimtab.sidecar.interfaces import BadBodyError, Call, Route


@pytest.mark.parametrize(
    ("route", "raw", "stream", "units"),
    [
        pytest.param(Route.GENERATE, b'{"inputs":"a","stream":true}', False, 1, id="generate never streams"),
        pytest.param(Route.GENERATE_STREAM, b'{"inputs":"a"}', True, 1, id="generate_stream always streams"),
        pytest.param(Route.COMPAT, b'{"inputs":"a","stream":true}', True, 1, id="root streams by its flag"),
        pytest.param(Route.COMPAT, b'{"inputs":"a"}', False, 1, id="root does not stream by default"),
        pytest.param(Route.GENERATE, b'{"inputs":"a","parameters":{"best_of":3}}', False, 3, id="best_of"),
        pytest.param(Route.GENERATE, b'{"inputs":"a","parameters":{"best_of":-3}}', False, 1, id="senseless best_of"),
        pytest.param(Route.GENERATE, b'{"inputs":"a","parameters":null}', False, 1, id="null parameters"),
        pytest.param(Route.CHAT, b'{"messages":[],"stream":true,"n":4}', True, 1, id="chat ignores n"),
        pytest.param(Route.CHAT, b'{"messages":[],"stream":1}', False, 1, id="only true streams"),
        pytest.param(Route.COMPLETIONS, b'{"prompt":["a","b"]}', False, 2, id="a prompt each"),
        pytest.param(Route.COMPLETIONS, b'{"prompt":[]}', False, 1, id="no prompt"),
        pytest.param(Route.INVOCATIONS, b'{"messages":[],"stream":true}', True, 1, id="invocations: chat"),
        pytest.param(
            Route.INVOCATIONS, b'{"inputs":"a","parameters":{"best_of":2}}', False, 2, id="invocations: native"
        ),
        pytest.param(Route.INVOCATIONS, b'{"prompt":["a","b","c"]}', False, 3, id="invocations: completions"),
        pytest.param(
            Route.VERTEX,
            b'{"instances":[{"inputs":"a"},{"inputs":"b","parameters":{"best_of":2}}]}',
            False,
            3,
            id="vertex: all instances",
        ),
        pytest.param(Route.VERTEX, b'{"instances":7}', False, 1, id="vertex without instances"),
    ],
)
def test_a_body_tells_representation_and_weight(route: Route, raw: bytes, stream: bool, units: int) -> None:
    call = read_call(route, raw)
    assert (call.stream, call.units, call.raw) == (stream, units, raw)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'"x"', id="string"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"a":1}x', id="trailing data"),
        pytest.param(b'{"a":1,"a":2}', id="duplicate key"),
        pytest.param(b'{"a":{"b":1,"b":1}}', id="nested duplicate key"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="duplicate key behind an escape"),
        pytest.param(b'{"a":NaN}', id="NaN"),
        pytest.param(b'{"a":-Infinity}', id="Infinity"),
        pytest.param(b'{"a":"\xff"}', id="bad UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="encoded surrogate"),
        pytest.param(b'{"a":"\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"a":"\x01"}', id="control character"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', id="byte order mark"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep nesting"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b'{"a":' + b"9" * 100_000 + b"}", id="huge number"),
        pytest.param(b'{"a":01}', id="leading zero"),
    ],
)
def test_what_can_be_no_request_is_refused_with_a_short_reason(raw: bytes) -> None:
    with pytest.raises(BadBodyError) as caught:
        read_call(Route.CHAT, raw)
    assert len(str(caught.value)) < 200


@given(raw=st.binary(max_size=200), route=st.sampled_from(list(Route)))
def test_arbitrary_bytes_give_a_call_or_a_refusal(raw: bytes, route: Route) -> None:
    try:
        call = read_call(route, raw)
    except BadBodyError:
        return
    assert isinstance(call, Call) and isinstance(call.body, dict)
