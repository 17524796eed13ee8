"""Flag lists: complete, sourced, and read without ever failing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.catalog.flags import load_flags

TGI, VLLM = load_flags("tgi"), load_flags("vllm")
LISTS = pytest.mark.parametrize("flags", [TGI, VLLM], ids=["tgi", "vllm"])


@LISTS
def test_every_entry_has_a_source_and_a_name_of_its_own(flags):
    entries = (*flags.flags, *flags.environment)
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names))
    assert all(entry.source for entry in entries)
    assert all(entry.flag.startswith("--") for entry in flags.flags)
    assert all(entry.flag is None and entry.env for entry in flags.environment)
    assert all(bool(entry.choices) == (entry.type == "choice") for entry in entries)


@LISTS
def test_defaults_satisfy_their_own_type(flags):
    for entry in flags.flags:
        if isinstance(entry.default, int | float | str) and entry.takes_value and entry.default != "":
            assert entry.problem(str(entry.default).lower()) is None or entry.problem(str(entry.default)) is None, entry


def test_tgi_has_the_launchers_flags_and_their_variables():
    assert (TGI.version, len(TGI.flags)) == ("3.3.7", 54)
    assert [entry.flag for entry in TGI.flags if entry.env is None] == ["--env"]
    for entry in TGI.flags:
        if entry.env is not None and entry.flag is not None:
            assert entry.env == entry.flag.removeprefix("--").replace("-", "_").upper()


@pytest.mark.parametrize(
    ("flag", "good", "bad"),
    [
        ("--port", ["1", "65535"], ["0", "65536", "-1", "80.0", "http", "", " 80", "٣"]),
        ("--num-shard", ["1", "8"], ["0", "-1", "1.5", "two"]),
        ("--max-batch-prefill-tokens", ["1", "4294967295"], ["0", "4294967296"]),
        ("--waiting-served-ratio", ["0", "0.3", "1e2"], ["-0.1", "nan", "inf", "x"]),
        ("--cuda-memory-fraction", ["0.5", "1", "1.0"], ["0", "1.1"]),
        ("--sharded", ["true", "false"], ["True", "1", "yes"]),
        ("--quantize", ["awq", "bitsandbytes-nf4"], ["AWQ", "int4"]),
        ("--cuda-graphs", ["0", "1,2,4"], ["1,", "a", "1, 2"]),
        ("--otlp-endpoint", ["http://x:4317", "any text"], [""]),
    ],
)
def test_values(flag, good, bad):
    facts = TGI.by_flag[flag]
    assert [value for value in good if facts.problem(value) is not None] == []
    assert [value for value in bad if facts.problem(value) is None] == []


def test_json_and_lists_of_vllm():
    assert VLLM.by_flag["--hf-overrides"].problem('{"a": 1}') is None
    assert VLLM.by_flag["--hf-overrides"].problem("{") is not None
    line = VLLM.parse(
        ["--lora-modules", "a=/a", "b=/b", "--no-enable-prefix-caching", "--compilation-config.level", "3"]
    )
    assert line.bad == ()
    assert [argument.written for argument in line.arguments] == [
        ("--lora-modules", "a=/a", "b=/b"),
        ("--no-enable-prefix-caching",),
        ("--compilation-config.level", "3"),
    ]


WORDS = st.one_of(
    st.sampled_from([entry.flag for entry in (*TGI.flags, *VLLM.flags) if entry.flag]),
    st.sampled_from(["-p", "-e", "--", "-", "--=", "--port=", "=", "--no-enforce-eager", "--hf-overrides.x"]),
    st.text(max_size=8),
)


@pytest.mark.parametrize("engine", ["tgi", "vllm"])
@given(args=st.lists(WORDS, max_size=8))
def test_any_command_line_is_taken_apart_without_loss(engine, args):
    flags = load_flags(engine)
    line = flags.parse(args)
    again = flags.parse([word for argument in line.arguments for word in argument.written])
    assert [(one.facts, one.value, one.more) for one in again.arguments] == [
        (one.facts, one.value, one.more) for one in line.arguments
    ]
    assert again.bad == ()
    assert bool(line.arguments or line.bad) == bool(args)


def test_unknown_engines_have_no_list():
    with pytest.raises(FileNotFoundError):
        load_flags("llama.cpp")
