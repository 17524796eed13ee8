"""Decisions about running deployments: pure functions over an observation, the objectives and a memory."""
