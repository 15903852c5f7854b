"""The command line. Heavy imports happen inside the commands, so that `mmrl --help` and `mmrl list` stay quick."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmrl._version import __version__
from mmrl.errors import UserError
from mmrl.launch import report_error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Look at the data of a config.")
app.add_typer(data_app, name="data")
reward_app = typer.Typer(no_args_is_help=True, help="Try out rewards.")
app.add_typer(reward_app, name="reward")
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the config's.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Reinforcement-learning post-training for models that see and models that draw."""


@app.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many processes on this machine.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Train what CONFIG describes; everything about the run goes into one folder."""
    values = list(overrides or [])
    alone = "WORLD_SIZE" not in os.environ
    if resume and alone and nproc is None:
        from mmrl.run import stored_config

        nproc = stored_config(config, values)[0].config.run.num_processes
    if nproc is not None and alone:
        from mmrl import launch
        from mmrl.config import load
        from mmrl.run import choose_folder

        values = [*values, f"run.num_processes={nproc}"]
        resolved = load(config, values)  # what is wrong with it is said once, before the processes start
        if resume:
            values += [f"run.dir={choose_folder(resolved, resume)}", "--resume"]
        arguments = ["train", config, *values]
        raise typer.Exit(launch.run(arguments, nproc))
    from mmrl import run

    expected = [f"run.num_processes={nproc}"] if nproc is not None else []
    run.train(config, [*values, *expected], resume)


@app.command()
def check(
    config: ConfigArgument,
    overrides: Overrides = None,
    media: Annotated[bool, typer.Option("--media", help="Read every picture and video of the data as well.")] = False,
) -> None:
    """Resolve and cross-check CONFIG without loading weights: geometry, forward passes, origin of every value."""
    from mmrl.check import show

    show(config, list(overrides or []), Console(), media)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="One kind; default: all of them.")] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, or your own (file.py:Class): all about it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show everything that a config can name; with KIND and NAME all about one, its options too."""
    from mmrl.catalogue import about, catalogue
    from mmrl.terminal import show_line, show_table

    if kind is not None and name is not None:
        one = about(kind, name)
        if as_json:
            print(json.dumps(one, indent=1))
            return
        console = Console()
        options = one.pop("options")
        show_line(console, one.pop("about") + "\n")
        show_table(console, ["", ""], [[key, value] for key, value in one.items() if value])
        if options:
            show_table(console, list(options[0]), [list(row.values()) for row in options], "\noptions")
        return
    entries = catalogue(kind)
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    console = Console()
    left_out = ("class", "options")
    for name, rows in entries.items():
        headings = [key for key in (rows[0] if rows else ["name"]) if key not in left_out]
        show_table(console, headings, [[row[key] for key in headings] for row in rows], name)
        show_line(console, "")
    if any("class" in row for rows in entries.values() for row in rows):
        show_line(console, "not shown: options (of one: mmrl list KIND NAME) and classes (both of all: --json)")


@data_app.command()
def preview(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, help="How many prompts and examples to show.")] = 24,
    stage: Annotated[str | None, typer.Option(help="A stage, or evaluation; default: all of them.")] = None,
) -> None:
    """Draw a picture sheet of what the model gets: pictures, questions and answers."""
    from mmrl.preview import write_preview

    for line in write_preview(config, list(overrides or []), out, count, stage):
        print(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for completion and checking in editors."""
    from mmrl.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
def report(run: RunArgument) -> None:
    """Write RUN/report.html from the run's files."""
    from mmrl.folder import open_run
    from mmrl.report.html import write_report

    print(write_report(open_run(run)))


@app.command()
def sample(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to draw or to answer; may be given several times.")
    ] = None,
    media: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture or video that every --prompt is about; several in the order of their <image>, <video>."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts from a file instead: .jsonl with text and media, or .txt.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; the next ones count up.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Samples per prompt.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: RUN/samples/drawn.")] = None,
) -> None:
    """Draw or answer with the newest checkpoint of RUN, with the run's evaluation sampling."""
    from mmrl.sample import ask, draw

    asked = ask(prompt or [], media or [], prompts)
    for line in draw(run, asked, seed, num, out or run / "samples" / "drawn"):
        print(line)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="The format: diffusers or transformers (the whole model), peft (the LoRA).")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: RUN/export/FORMAT.")] = None,
) -> None:
    """Write RUN's newest checkpoint for other programs."""
    from mmrl.sample import write_export

    print(write_export(run, to, out or run / "export" / to))


@reward_app.command("test")
def reward_test(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A name, package.module:Class or file.py:Class.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the reward.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Side of the test pictures in pixels.")] = 64,
    target: Annotated[str | None, typer.Option(help="Target of the prompts (YAML).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the prompts.")] = None,
) -> None:
    """Does a reward keep its promises? One line per check; exit code 1 when one does not hold."""
    from mmrl.config.source import values_of
    from mmrl.reward.conformance import run

    given = values_of(list(options or []))
    wanted = None if target is None else values_of([f"target={target}"])["target"]
    if not run(reward, given, size, wanted, Console(), prompt):
        raise typer.Exit(1)


@reward_app.command("calibrate")
def reward_calibrate(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A name, package.module:Class or file.py:Class.")],
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="Labelled pairs, JSON lines.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the reward.")
    ] = None,
) -> None:
    """How well a reward agrees with labelled pairs, and whether it likes the first place or the longer text."""
    from mmrl.config.source import values_of
    from mmrl.reward.calibrate import run

    run(reward, values_of(list(options or [])), pairs, Console())


@reward_app.command("replay")
def reward_replay(
    run: RunArgument,
    rewards: Annotated[
        str, typer.Option(metavar="FILE", help="rewards: as in a stage, also with objective: (or a whole config).")
    ],
    stage: Annotated[str | None, typer.Option(help="The rl stage; default: the one whose samples were kept.")] = None,
    steps: Annotated[str | None, typer.Option(help="Only these, such as 10,20; default: all that were kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: RUN/replay/NAME.")] = None,
) -> None:
    """What if the rewards had been others: score the samples that RUN kept again, and compare the advantages."""
    from mmrl.replay import compare

    compare.run(run, rewards, stage, steps, out, Console())


@app.command("serve-rewards")
def serve_rewards(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Serve the rewards of CONFIG over HTTP (JSON; on this machine alone unless a token is set) until interrupted."""
    import importlib

    serving = importlib.import_module("mmrl.rewards.remote.serve")  # by name: the core imports no reward
    serving.serve(config, list(overrides or []))


@app.command()
def doctor() -> None:
    """Check torch, device, kernels, codecs and optional packages, and say what to install."""
    from mmrl.doctor import show

    raise typer.Exit(show(Console()))


def main() -> None:
    """Entry point: a user's error is one clear line and exit code 2; Ctrl-C ends with 130; the rest is a traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        report_error(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        report_error(str(stop) or "interrupted")
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        report_error(f"error: disk full ({error.filename or error}); free some space and continue with --resume")
        sys.exit(2)
