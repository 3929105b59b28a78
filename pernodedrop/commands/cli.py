"""The command line: `pernodedrop demo | study | bench | doctor | check`, also as `python -m pernodedrop`.

A command is one function: it adds its parser to the others and says what to run. What it runs imports what it needs
itself, takes the parsed arguments and returns the exit code: 0, 1 for a finding, a failure or something that is not
installed, 2 for wrong usage.
"""

import argparse
import collections.abc
import contextlib
import functools
import importlib
import sys
import typing

from pernodedrop import backends
from pernodedrop._version import __version__
from pernodedrop.commands import framework

Commands: typing.TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

BACKENDS = ", ".join(backends.NAMES)
VARIANTS = (  # as the commands have them, which import Keras
    "none, dropout, gaussian_dropout, drop_connect, masksembles, per_node_drop, per_node_drop_gaussian, "
    "per_node_drop_fixed"
)
ROWS = (
    "gaussian_dropout, drop_connect, drop_connect_sample, fixed, gaussian, gaussian_recomputed, uniform, bernoulli, "
    "bernoulli_recomputed, bernoulli_materialized, bernoulli_kernel, by_hand, keras_dropout, keras_gaussian_dropout, "
    "torch_dropout"
)
"""Choices as help has them."""

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: collections.abc.Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments as a list of strings; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: after --help or --version with code 0, after wrong usage with code 2.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("pernodedrop: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pernodedrop", description="Noise regularizers with the same masks on TensorFlow, PyTorch, JAX and NumPy."
    )
    parser.add_argument("--version", action="version", version=f"pernodedrop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in (_add_demo, _add_study, _add_bench, _add_doctor, _add_check):
        add_command(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    text = "train one small network on handwritten digits with seven regularizers and without, and compare; minutes"
    parser = commands.add_parser("demo", help=text, description=text)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="fresh seeds that confirm (default: 5)")
    parser.add_argument("--epochs", type=int, default=25, metavar="N", help="epochs of each run (default: 25)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of {VARIANTS} (default: all)")
    parser.add_argument("--output", metavar="DIR", help="where results go (default: demo-results/<backend>)")

    def run(args: argparse.Namespace) -> int:
        ready = functools.partial(framework.settle, framework.TRAIN)
        demo = _needing("demo", "pernodedrop.commands.demo", parser, ready)
        with _refusing(parser, TypeError, ValueError):
            settings = demo.Settings(args.seeds, args.epochs, args.variants, args.output)
        return demo.run(settings)

    parser.set_defaults(run=run)


def _add_study(commands: Commands) -> None:
    text = "find out which regularizer helps, at which rate, beyond chance: the papers' experiments, or your own"
    parser = commands.add_parser("study", help=text, description=text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    _study_action(actions, "list", "the studies that come with the package, what they are and how long they take")
    for name, text in (
        ("run", "run a study, or go on with it; Ctrl-C, and even kill -9, lose nothing that has finished"),
        ("resume", "go on with a study that has begun, also from records.jsonl of another machine alone"),
        ("status", "how far a study is"),
        ("report", "write what the records of a study say"),
    ):
        action = _study_action(actions, name, text)
        action.add_argument("name", metavar="NAME", help="a study of `pernodedrop study list`, or a .toml file")
        action.add_argument("--folder", metavar="DIR", help="where results go (default: study-results/<NAME>)")
        action.add_argument("--seeds", type=int, metavar="N", help="fresh seeds that confirm (default: the study's)")
        if name in ("run", "resume"):
            action.add_argument("--hours", type=float, metavar="N", help="begin no trial that would end after that")
            action.add_argument("--data", metavar="DIR", help="where the data lie (default: $PERNODEDROP_DATA)")
            action.add_argument("--storage", metavar="URL", help="a PostgreSQL that many workers share")


def _study_action(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)

    def run(args: argparse.Namespace) -> int:
        ready = functools.partial(framework.settle, framework.TRAIN)
        command = _needing("study", "pernodedrop.commands.study", parser, ready)
        if args.action == "list":
            print(command.listing())
            return 0
        with _refusing(parser, TypeError, ValueError, FileNotFoundError, ConnectionError):
            study = command.load(args)
        return command.run(study, args)

    parser.set_defaults(run=run)
    return parser


def _add_bench(commands: Commands) -> None:
    text = "measure what a training step costs with the usual regularizers, on every backend, against the machine"
    parser = commands.add_parser("bench", help=text, description=text)
    parser.add_argument(
        "--profile",
        default="quick",
        metavar="NAME",
        help="quick, paper, growth, auto, sparse, full (default: quick, a minute or two; the others take longer)",
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help=f"some of {BACKENDS} (default: all installed)")
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help=f"some of {ROWS}, beside dense and dropout (default: all)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="times each case is timed (default: the profile's)")
    parser.add_argument(
        "--output",
        default="bench-results",
        metavar="DIR",
        help="where results go; what is there is not measured again (default: bench-results)",
    )

    def run(args: argparse.Namespace) -> int:
        ready = functools.partial(framework.choose, framework.ALL)  # its processes have others: a misspelt one is told
        bench = _needing("bench", "pernodedrop.commands.bench.command", parser, ready)
        with _refusing(parser, TypeError, ValueError):
            settings = bench.Settings(args.profile, args.backends, args.rows, args.rounds, args.output)
        with _refusing(parser, bench.WrongOutput):
            return bench.run(settings)

    parser.set_defaults(run=run)


def _add_doctor(commands: Commands) -> None:
    text = "say what is installed, whether every backend makes the same masks, and what Keras runs on"
    parser = commands.add_parser("doctor", help=text, description=text)

    def run(args: argparse.Namespace) -> int:
        from pernodedrop.commands import doctor

        return doctor.run()

    parser.set_defaults(run=run)


def _add_check(commands: Commands) -> None:
    text = "prove or refute that a noise of your own is what it claims to be, on every backend, and draw it"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument(
        "target", metavar="MODULE:NAME", help="a noise, a Noise class or a Hypothesis strategy of noises"
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help=f"some of {BACKENDS} (default: all installed)")
    parser.add_argument(
        "--claims", nargs="+", metavar="NAME", help="some of the claims, as the report has them (default: all)"
    )
    parser.add_argument("--examples", type=int, default=20, metavar="N", help="examples for a claim (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search for examples (default: 0)")
    parser.add_argument("--picture", metavar="FILE", help="where the picture goes (default: check-results/<NAME>.png)")

    def run(args: argparse.Namespace) -> int:
        ready = functools.partial(framework.settle_if_there, framework.ALL)
        command = _needing("testing", "pernodedrop.commands.check", parser, ready)
        chosen = {"backends": args.backends, "claims": args.claims, "examples": args.examples, "seed": args.seed}
        with _refusing(parser, TypeError, ValueError, ImportError):
            noise, path = command.load(args.target), command.picture_path(args.target, args.picture)
            refused = command.check(noise, **chosen)
        command.draw(noise, path, refused)
        return int(refused)

    parser.set_defaults(run=run)


def _needing(
    extra: str, module: str, parser: argparse.ArgumentParser, ready: collections.abc.Callable[[], object]
) -> typing.Any:
    """A module that needs an extra, once Keras is `ready` for it; where something is not installed the command ends."""
    try:
        with _refusing(parser, ValueError):
            ready()
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        extras = f"{extra},{error.name}" if error.name in framework.TRAIN else extra
        parser.exit(1, f"{parser.prog}: {error}. Try: pip install 'pernodedrop[{extras}]'\n")


@contextlib.contextmanager
def _refusing(parser: argparse.ArgumentParser, *errors: type[Exception]) -> collections.abc.Iterator[None]:
    """End the command with one line where a setting is wrong."""
    try:
        yield
    except errors as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
