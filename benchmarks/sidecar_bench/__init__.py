"""Servers, loads and measures of the sidecar's benchmark."""
