"""The click classes of the commands: options in groups, help that fits, a word for what was meant otherwise."""

import itertools
import re
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ringmain import __version__
from ringmain.cli.flags import set_by_environment, stand_for
from ringmain.cli.values import file_names
from ringmain.terminal import columns

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Help is readable up to so many columns, and that wide where nobody tells how many there are.
_WIDEST, _USUAL = 100, 80
# Below so many columns what an option does stands under it.
_NARROW = 60
# The groups of options, in the order of help, what each is about, and who is in it: the keywords, in that order.
# Whatever is nowhere else is in the first one.
GROUPS: dict[str, tuple[str, str]] = {
    "main": (
        "What is needed first.",
        "server input input_ output connect listen listen_once reverse time parallel max_connections reconnect tls "
        "json verbose",
    ),
    "connections": (
        "Who may connect, how to listen, how often to retry.",
        "keep_listening processes retry gate allow reuse_port socket_mode socket_owner one_way accept_proxy send_proxy "
        "family",
    ),
    "tls": (
        "Certificates, and which peers to trust.",
        "certfile keyfile key_password_file self_signed cafile server_name insecure fingerprint client_ca client_cert "
        "crl tls_auto alpn min_tls_version ciphers tls13_ciphers reload_certificates",
    ),
    "limits": (
        "Time limits and buffer sizes.",
        "connect_timeout handshake_timeout idle_timeout keepalive linger receive_buffer slow client_buffer "
        "message_size max_in_flight bytes omit limit records_per_second",
    ),
    "files": ("How to write files, run commands and move bytes.", "append exec path"),
    "records": ("Where records end.", "delimiter framing max_record long_records"),
    "reporting": (
        "Messages, progress, statistics and metrics.",
        "quiet progress port_file stats_file stats_interval metrics json_stream report version",
    ),
    "baselines": (
        "Earlier results to compare with.",
        "save_baseline baseline rounds noise_threshold fail_on force",
    ),
    "nats": ("Streams of NATS JetStream.", "consumer from_sequence until_sequence filter credentials create_stream"),
}
_GROUP_OF = {name: group for group, (_, names) in GROUPS.items() for name in names.split()}
TITLES = {"main": "Options", "tls": "TLS", "nats": "NATS"}


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"ringmain {__version__}")
        ctx.exit()


def _show_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(ctx.get_help())
        ctx.exit()


# What click has for both looks for translations first, whoever asks for neither.
_AT_ONCE: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
VERSION = click.option("--version", callback=_show_version, help="Show the version and exit.", **_AT_ONCE)


def plain_help(names: list[str]) -> click.Option:
    """Return --help of a command whose options are all in one group."""
    return click.Option(names, callback=_show_help, help="Show this message and exit.", **_AT_ONCE)


def words_of(error: click.ClickException) -> str:
    """Return what click says of arguments; one that it quotes may be an endpoint with a password, out of its place."""
    words = error.format_message().rstrip(".").replace("\n", " ")
    return re.sub(r"""(['"])(?!unix:)(?:(?!\1).)*@""", r"\1...@", words)


class _Formatter(click.HelpFormatter):
    """Text of the width that there is."""

    def __init__(self) -> None:
        super().__init__(width=min(columns(1) or _USUAL, _WIDEST) - 2)

    def write_text(self, text: str) -> None:
        """Write paragraphs; what is told of an example stands under it where that is too long for one line."""
        lines = []
        for line in text.split("\n"):
            command, gap, comment = line.partition("   ")
            room = self.width - self.current_indent
            if gap and command.startswith("ringmain ") and len(line) > room:
                lines += [command, click.wrap_text(comment.strip(), room, "    ", "    ")]
            else:
                lines.append(line)
        super().write_text("\n".join(lines))

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms and what is told of them."""
        super().write_dl(rows, col_max if self.width >= _NARROW else col_spacing, col_spacing)


class Context(click.Context):
    """What click makes of a command's arguments."""

    def make_formatter(self) -> click.HelpFormatter:
        """Return what help is written with."""
        return _Formatter()


class Command(click.Command):
    """A verb. `--help` shows the options that people need first and names the groups of all others."""

    context_class = Context
    _help: click.Option | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        stand_for(option.name for option in self.params if option.name)

    @staticmethod
    def group_of(option: click.Parameter) -> str:
        """Return the group that an option belongs to."""
        name = option.name.removeprefix("source_").removeprefix("destination_")
        return _GROUP_OF.get(name, "main")

    def groups(self) -> dict[str, list[click.Option]]:
        """Return the groups in the order of help, "main" first, and the options of each in theirs."""
        groups: dict[str, list[click.Option]] = {name: [] for name in GROUPS}
        for option in self.params:
            if isinstance(option, click.Option) and not option.hidden:
                groups[self.group_of(option)].append(option)
        for name, (_, names) in GROUPS.items():
            # Of both ends of a relay: all of one, then all of the other.
            groups[name].sort(key=lambda it: (it.name.startswith("destination_"), _rank(it, names.split())))
        return {name: options for name, options in groups.items() if options}

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return --help, which may have the name of a group."""
        if self._help is None:
            if len(groups := self.groups()) == 1:
                return plain_help(ctx.help_option_names)
            self._help = click.Option(
                ctx.help_option_names,
                is_flag=False,
                flag_value="main",
                type=click.Choice([*groups, "all"]),
                metavar="[GROUP]",
                expose_value=False,
                is_eager=True,
                allow_from_autoenv=False,
                callback=self._show_help,
                help="Show this help, the options of GROUP, or all.",
            )
        return self._help

    def _show_help(self, ctx: click.Context, _: click.Parameter, group: str | None) -> None:
        if group is None or ctx.resilient_parsing:
            return
        formatter = ctx.make_formatter()
        if group == "main":
            self.format_help(ctx, formatter)
        else:
            self.format_usage(ctx, formatter)
            if group == "all":
                self.format_help_text(ctx, formatter)
            for name, options in self.groups().items():
                if group in (name, "all"):
                    self._write(ctx, formatter, name, options)
        click.echo(formatter.getvalue().rstrip("\n"))
        ctx.exit()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that are needed first, and which groups of others there are."""
        groups = self.groups()
        self._write(ctx, formatter, "main", groups.pop("main", []))
        if groups:
            with formatter.section("More options"):
                formatter.write_text(
                    f"{ctx.command_path} --help GROUP shows the options of one group, --help all every option."
                )
                formatter.write_dl([(name, GROUPS[name][0]) for name in groups])

    def _write(
        self, ctx: click.Context, formatter: click.HelpFormatter, group: str, options: list[click.Option]
    ) -> None:
        help_option = self.get_help_option(ctx)
        shown = [*options, help_option] if group == "main" and help_option is not None else options
        with formatter.section(TITLES.get(group, group.capitalize())):
            formatter.write_dl([record for it in shown if (record := it.get_help_record(ctx)) is not None])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; raise click.UsageError."""
        given = list(args)
        stand_for(option.name for option in self.params if option.name)
        ctx.allow_extra_args = True  # what is told of them is ours
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name.swapcase()
            if (other := self._by_flag().get(flag)) is None:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}: {flag} is {other.opts[-1]}", ctx) from None
        finally:
            for option in self.params:
                if ctx.get_parameter_source(option.name) is ParameterSource.ENVIRONMENT:
                    variable = option.envvar or f"{ctx.auto_envvar_prefix}_{option.name.upper()}"
                    set_by_environment(option.opts[-1], str(variable))
        if rest and not ctx.resilient_parsing:
            ctx.fail(f"unexpected argument {rest[-1]!r}{self._meant(given)}")
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem[str]]":
        """Complete what no argument is: flags, and the path of a UNIX socket, which bash cuts at the colon."""
        arguments = [ctx.params[it.name] for it in self.params if isinstance(it, click.Argument)]
        words = [word for word in (*arguments, *ctx.args) if word is not None]
        return file_names(incomplete) if words[-2:] == ["unix", ":"] else super().shell_complete(ctx, incomplete)

    def _by_flag(self) -> dict[str, click.Option]:
        return {flag: it for it in self.params if isinstance(it, click.Option) for flag in it.opts}

    def _meant(self, given: list[str]) -> str:
        """Return what to say of a flag that was given a value and takes none: -o, which is not curl's."""
        flags = self._by_flag()
        for flag, value in itertools.pairwise(given):
            option = flags.get(flag)
            if option is None or not option.is_flag or value.startswith("-") or ":" in value:
                continue
            other = flags.get(flag.swapcase())
            meant = f"; {flag.swapcase()} is {other.opts[-1]}, which does" if other and not other.is_flag else ""
            return f": {flag} is {option.opts[-1]}, which takes no value{meant}"
        if any(not word.startswith("-") and ":" not in word for word in given):
            return "".join(f"; {flag} names a file" for flag in ("--input", "--output") if flag in flags)
        return ""


def _rank(option: click.Option, names: list[str]) -> int:
    """Return the place of an option in its group; whoever has none of its own is the last."""
    name = option.name.removeprefix("source_").removeprefix("destination_")
    return names.index(name) if name in names else len(names)
