"""`make demo`: Trimtab doing its job on a real Kubernetes with real traffic, on one machine."""
