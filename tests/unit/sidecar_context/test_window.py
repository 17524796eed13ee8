from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.context.window import Node, chain, find_cuts, tree

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=60)
rooms = st.integers(20, 200)
waters = st.sampled_from([0.25, 0.5, 0.75, 1.0])


def test_a_conversation_that_fits_is_not_cut() -> None:
    assert find_cuts([10, 10, 10], 30, low_water=0.5, keep_last=1) == (0,)


def test_an_overflow_cuts_down_to_the_low_water_mark() -> None:
    assert find_cuts([10] * 11, 100, low_water=0.5, keep_last=1) == (0, 6)


def test_the_latest_turns_stay_as_long_as_they_fit() -> None:
    assert find_cuts([10, 10, 40, 40, 19], 100, low_water=0.1, keep_last=3) == (0, 2)
    assert find_cuts([10, 10, 60, 60, 19], 100, low_water=0.1, keep_last=3) == (0, 3)


def test_one_long_turn_stands_alone() -> None:
    assert find_cuts([10, 500], 100, low_water=0.5, keep_last=2) == (0, 1)


@given(turns=sizes, room=rooms, water=waters, keep=st.integers(1, 4))
def test_what_is_kept_fits_unless_it_is_one_turn(turns: list[int], room: int, water: float, keep: int) -> None:
    cuts = find_cuts(turns, room, low_water=water, keep_last=keep)
    kept = turns[cuts[-1] :]
    assert kept and (sum(kept) <= room or len(kept) == 1)
    assert list(cuts) == sorted(set(cuts)) and cuts[0] == 0
    if sum(turns) <= room:
        assert cuts == (0,)


@given(turns=sizes, room=rooms, water=waters, keep=st.integers(1, 4))
def test_cuts_stay_where_they_are_while_the_conversation_grows(
    turns: list[int], room: int, water: float, keep: int
) -> None:
    whole = find_cuts(turns, room, low_water=water, keep_last=keep)
    for length in range(1, len(turns)):
        earlier = find_cuts(turns[:length], room, low_water=water, keep_last=keep)
        assert whole[: len(earlier)] == earlier


def covered(nodes: tuple[Node, ...]) -> list[int]:
    return [turn for node in nodes for turn in range(node.start, node.end)]


def well_formed(node: Node) -> bool:
    place = node.start
    for child in node.children:
        if child.start != place or not well_formed(child):
            return False
        place = child.end
    return place == node.said_from <= node.end


cuts_lists = st.lists(st.integers(1, 300), max_size=40, unique=True).map(lambda found: (0, *sorted(found)))


@given(cuts=cuts_lists, fanout=st.integers(2, 5), most=st.integers(1, 6))
def test_summaries_cover_every_condensed_turn_once_and_in_order(cuts: tuple[int, ...], fanout: int, most: int) -> None:
    nodes = tree(cuts, fanout=fanout, most=most)
    assert covered(nodes) == list(range(cuts[-1]))
    assert all(well_formed(node) for node in nodes)
    assert len(nodes) <= most
    running = chain(cuts)
    assert covered((running,) if running else ()) == list(range(cuts[-1]))
    assert running is None or well_formed(running)


def test_a_running_summary_condenses_its_predecessor_with_what_came_since() -> None:
    assert chain((0, 3, 5)) == Node(0, 5, (Node(0, 3),))


def test_a_tree_condenses_summaries_of_one_level_into_the_next() -> None:
    nodes = tree((0, 1, 2, 3, 4, 5), fanout=2, most=9)
    assert [(node.start, node.end, node.level) for node in nodes] == [(0, 4, 2), (4, 5, 0)]


@given(cuts=cuts_lists, fanout=st.integers(2, 5))
def test_summaries_once_formed_are_reused_while_the_conversation_grows(cuts: tuple[int, ...], fanout: int) -> None:
    def parts(nodes: tuple[Node, ...]) -> set[Node]:
        return {part for node in nodes for part in {node, *parts(node.children)}}

    for length in range(2, len(cuts)):
        older, newer = (parts(tree(cuts[:end], fanout=fanout, most=99)) for end in (length, length + 1))
        assert older <= newer
