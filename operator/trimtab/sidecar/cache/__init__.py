"""The response cache: keys, what may be cached, stored answers, tiers, coalescing, semantic look-up."""
