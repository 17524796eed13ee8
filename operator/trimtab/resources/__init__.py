"""From a plan to Kubernetes objects: pure builders, one module a kind, and `render`, which calls them all."""
