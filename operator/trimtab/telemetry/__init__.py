"""Prometheus → one Observation a deployment, with a constant number of queries for any number of deployments."""
