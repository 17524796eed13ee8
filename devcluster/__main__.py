"""`python3 -m devcluster COMMAND`."""

import argparse
import sys

from devcluster import apiserver, cleanup, cluster, gpus
from devcluster.paths import ClusterError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m devcluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster (again: finds it running)")
    up.add_argument("--gpu-product", help=f"GPUs that the node seems to have (else as before, at first {gpus.DEFAULT})")
    up.add_argument("--gpus", type=int, help="how many of them (else as before, at first 8)")
    up.add_argument("--gpu-memory-mib", type=int, help="memory of one, for a product that is not known")
    up.add_argument("--compute-capability", help="for a product that is not known, such as 8.9")
    for command, text in (
        ("down", "end everything and remove every trace"),
        ("images", "build and import the project's images"),
        ("addons", "start Prometheus and Redis"),
        ("status", "what runs"),
        ("kubeconfig", "print the path of the kubeconfig"),
    ):
        commands.add_parser(command, help=text)
    commands.add_parser("tool", help="print the path of kubectl or helm").add_argument("name")
    for command, text in (("apiserver-up", "an API server without a node"), ("apiserver-down", "end it")):
        commands.add_parser(command, help=text).add_argument("--name", default="default")
    server = commands.choices["apiserver-up"]
    server.add_argument("--controllers", action="store_true", help="with controller manager and scheduler")
    return parser


def main() -> int:
    """Run one command; 0: done, 1: failed, 3: this machine lacks something that the message names."""
    arguments = _parser().parse_args()
    try:
        _run(arguments)
    except ClusterError as failed:
        print(f"devcluster: {failed}", file=sys.stderr)
        return failed.code
    return 0


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "up":
            chosen = (arguments.gpu_product, arguments.gpus, arguments.gpu_memory_mib, arguments.compute_capability)
            cluster.up(*chosen)
        case "down":
            cleanup.down(cluster.folder())
        case "images":
            cluster.load_images()
        case "addons":
            cluster.start_addons()
        case "status":
            print(cluster.status())
        case "kubeconfig":
            print(cluster.current().kubeconfig)
        case "tool":
            print(cluster.tool(arguments.name))
        case "apiserver-up":
            print(apiserver.up(arguments.name, controllers=arguments.controllers).kubeconfig)
        case "apiserver-down":
            apiserver.down(arguments.name)


if __name__ == "__main__":
    sys.exit(main())
