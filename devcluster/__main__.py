"""`python3 -m devcluster COMMAND`."""

import argparse
import sys

from devcluster import apiserver
from devcluster.paths import ClusterError


def main() -> int:
    """Run one command; 0: done, 1: failed, 3: this machine lacks something that the message names."""
    parser = argparse.ArgumentParser(prog="python3 -m devcluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (("apiserver-up", "an API server without a node"), ("apiserver-down", "end it")):
        commands.add_parser(command, help=text).add_argument("--name", default="default")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "apiserver-up":
                print(apiserver.up(arguments.name).kubeconfig)
            case "apiserver-down":
                apiserver.down(arguments.name)
    except ClusterError as failed:
        print(f"devcluster: {failed}", file=sys.stderr)
        return failed.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
