"""A real Kubernetes on one machine, built from Go modules and Debian packages. See docs/devcluster.md."""
