"""`trimtab`: the command line. Each verb is a module of this package, loaded only when it is used."""

from importlib import import_module

import click

VERBS = (
    ("plan", "Choose model format, GPUs and engine settings, and say why not the others."),
    ("render", "Print the Kubernetes manifests of a deployment."),
    ("replay", "Send a recorded request trace to a server and report latencies."),
    ("simulate", "Run a trace through the simulated engine."),
    ("export-trace", "Write a trace in another format."),
    ("crd", "Print the CustomResourceDefinition."),
)
"""Name and one line of help; the module is the name with underscores and has a click command named `command`."""


class LazyGroup(click.Group):
    """A group that lists its verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which they are usually needed."""
        return [name for name, _ in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb; None when there is no such verb."""
        if cmd_name not in dict(VERBS):
            return None
        module = import_module(f"trimtab.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"trimtab.cli.{cmd_name}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, from VERBS rather than from the modules."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trimtab")
def main() -> None:
    """Keep LLM serving within its service-level objective at the lowest cost."""


if __name__ == "__main__":
    main()
