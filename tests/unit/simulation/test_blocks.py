import random

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.simulation.blocks import RadixAllocator, SimpleAllocator, usable_blocks
from trimtab.simulation.prompts import Prompt


def text(*tokens: int) -> Prompt:
    return Prompt(len(tokens), tokens, 1)


def test_the_first_block_is_kept_for_health_checks():
    assert usable_blocks(1000, 1) == 999
    assert usable_blocks(1000, 16) == 61


def test_a_request_takes_whole_blocks():
    allocator = SimpleAllocator(10, 16)
    allocation = allocator.allocate(33, None)
    assert allocation.blocks == 3
    assert allocator.allocate(16 * 8, None) is None
    allocator.release(allocation)
    assert allocator.free_blocks == 10


def test_a_prompt_is_reusable_only_after_its_request_ended():
    allocator = RadixAllocator(100)
    first = allocator.allocate(6, text(1, 2, 3, 4))
    second = allocator.allocate(6, text(1, 2, 3, 4))
    assert second.prefix_tokens == 0
    allocator.release(first)
    third = allocator.allocate(6, text(1, 2, 3, 4))
    assert third.prefix_tokens == 4
    assert third.blocks == 6


def test_duplicate_blocks_and_generated_tokens_are_freed():
    allocator = RadixAllocator(100)
    first, second = allocator.allocate(6, text(1, 2, 3, 4)), allocator.allocate(6, text(1, 2, 3, 4))
    allocator.release(first)
    allocator.release(second)
    assert (allocator.cached_blocks, allocator.free_blocks) == (4, 96)


def test_a_common_beginning_is_shared_up_to_the_first_difference():
    allocator = RadixAllocator(100)
    allocator.release(allocator.allocate(5, text(1, 2, 3, 4, 5)))
    other = allocator.allocate(5, text(1, 2, 9, 9, 9))
    assert other.prefix_tokens == 2
    allocator.release(other)
    assert allocator.cached_blocks == 8
    assert allocator.allocate(5, text(1, 2, 9, 9, 7)).prefix_tokens == 4


def test_hits_are_whole_blocks():
    allocator = RadixAllocator(100, 4)
    allocator.release(allocator.allocate(10, text(*range(10))))
    assert allocator.cached_blocks == 2
    assert allocator.allocate(10, text(0, 1, 2, 3, 4, 5, 99, 98, 97, 96)).prefix_tokens == 4


def test_block_hashes_of_a_trace_share_their_leading_blocks():
    allocator = RadixAllocator(10_000)
    allocator.release(allocator.allocate(1200, Prompt(1200, (7, 8, 9), 512)))
    assert allocator.allocate(1200, Prompt(1200, (7, 8, 10), 512)).prefix_tokens == 1024


def test_least_recently_used_prompts_give_way_and_pinned_ones_do_not():
    allocator = RadixAllocator(10)
    for token in (1, 2):
        allocator.release(allocator.allocate(4, text(token, token, token, token)))
    pinned = allocator.allocate(4, text(1, 1, 1, 1))
    assert pinned.prefix_tokens == 4
    assert allocator.allocate(6, text(3, 3, 3, 3, 3, 3)) is not None
    assert allocator.allocate(1, text(4)) is None, "only the pinned prompt is left"
    allocator.release(pinned)
    assert allocator.allocate(1, text(4)) is not None


def test_a_large_leaf_loses_only_its_tail():
    allocator = RadixAllocator(10)
    allocator.release(allocator.allocate(8, text(*range(8))))
    assert allocator.allocate(5, text(50, 51, 52, 53, 54)) is not None
    assert allocator.cached_blocks == 5
    assert allocator.free_blocks == 0


def test_evicted_stays_evicted_when_the_allocation_fails():
    allocator = RadixAllocator(10)
    allocator.release(allocator.allocate(4, text(1, 2, 3, 4)))
    assert allocator.allocate(11, text(9, 9)) is None
    assert allocator.cached_blocks == 0
    assert allocator.free_blocks == 10


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.sampled_from([1, 4, 16]))
def test_no_block_is_lost_or_made(seed, block):
    rng = random.Random(seed)
    allocator = RadixAllocator(60, block)
    held = []
    for _ in range(80):
        if held and rng.random() < 0.5:
            allocator.release(held.pop(rng.randrange(len(held))))
        else:
            tokens = tuple(rng.choice((0, 1)) for _ in range(rng.randint(1, 40)))
            allocation = allocator.allocate(len(tokens) + rng.randint(1, 20), text(*tokens))
            if allocation is not None:
                held.append(allocation)
        owned = sum(a.blocks - a.prefix_tokens // block for a in held)
        assert owned + allocator.free_blocks + allocator.cached_blocks == 60
        assert allocator.free_blocks >= 0
    for allocation in held:
        allocator.release(allocation)
    assert allocator.free_blocks + allocator.cached_blocks == 60
    assert allocator.allocate(60 * block, text(9)) is not None, "everything can be evicted in the end"
