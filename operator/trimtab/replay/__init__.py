"""Request traces (found, read, rescaled, generated) and the open-loop client that sends them to a server."""
