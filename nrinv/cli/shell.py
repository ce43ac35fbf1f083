"""What every command does alike: one line for each failure and each warning, exit codes, progress.

    0    done
    1    refused or failed, one line "nrinv: ..." on stderr says why
    2    a wrong option or a missing argument
    130  interrupted by Ctrl-C

--debug, or NRINV_TRACEBACK=1 in the environment, shows where an error was raised.
"""

import errno
import functools
import inspect
import itertools
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import __version__
from .options import Drawing

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the noise from which a diffusion pipeline draws an image, and draw from it.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong options, 130 interrupted.",
)

# ----------------------------------------------------------------------------------------------------------------- messages


def say(text, *, error=False):
    """One line on stdout or stderr; what its encoding lacks is escaped."""
    encoding = getattr(sys.stderr if error else sys.stdout, "encoding", None) or "utf-8"
    typer.echo(" ".join(str(text).split()).encode(encoding, "backslashreplace").decode(encoding), err=error)


def complain(text):
    say(f"nrinv: {text}", error=True)


# Characters of a message: libraries put stacks and whole configurations into theirs.
_LENGTH = 600
_MEMORY = re.compile(r"out of memory|not enough memory|can(?:'|no)t allocate memory", re.IGNORECASE)


def explain(error):
    """An exception as a user reads it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LENGTH else f"{text[:_LENGTH]} ..."
    if isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, OSError)) and _MEMORY.search(text)):
        return "out of memory; a smaller --size or --batch-size takes less, and so does --dtype float16 on a GPU"
    if isinstance(error, Image.DecompressionBombError):
        return f"image: {text}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


class Screen:
    """What a command shows: a bar on a terminal while networks run, and lines.

    quiet: neither; failures and warnings are shown all the same.
    """

    def __init__(self, quiet=False, debug=False):
        self.quiet, self.debug = quiet, debug
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        shown = not quiet and console.is_interactive
        # Lines on stdout may go elsewhere than the bar: they are not redirected to its terminal.
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not shown, redirect_stdout=False, redirect_stderr=False
        )
        self._task = None

    @contextmanager
    def _paused(self):
        """While this is open lines can be written: the bar is not on the terminal."""
        live = self._bar.live.is_started
        if live:
            self._bar.stop()
        yield
        if live:
            self._bar.start()

    def say(self, text):
        if not self.quiet:
            with self._paused():
                say(text)

    def complain(self, text):
        with self._paused():
            complain(text)

    def phase(self, text):
        """What is going on from now on."""
        if self._task is None:
            self._task = self._bar.add_task(text, total=None)
        else:
            self._bar.reset(self._task, description=text, total=None)
        self._bar.refresh()

    @contextmanager
    def running(self):
        """While this is open the bar is on the terminal."""
        with self._bar:
            yield

    @contextmanager
    def watched(self, pipe):
        """While this is open the pipeline advances the bar instead of its own."""
        from ..session import replaced

        def progress_bar(iterable=None, total=None):
            return _Steps(self._bar, self._task, iterable, total)

        if self._task is None:
            self.phase("")
        with replaced(pipe, progress_bar=progress_bar):
            yield


class _Steps:
    """What diffusers' loops call of their progress bar."""

    def __init__(self, bar, task, iterable, total):
        self._bar, self._task, self._iterable = bar, task, iterable
        bar.reset(task, total=len(iterable) if total is None and hasattr(iterable, "__len__") else total)

    def update(self, n=1):
        self._bar.advance(self._task, n)

    def __iter__(self):
        for one in self._iterable:
            yield one
            self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __getattr__(self, name):
        """`set_description`, `close` and what else tqdm has: nothing happens."""
        return lambda *args, **kwargs: None


@contextmanager
def _warnings_in_lines(screen):
    """Warnings of nrinv become lines on stderr, once each; those of its libraries are for programmers."""
    shown = set()

    def show(message, *args, **kwargs):
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
            frame = frame.f_back  # whoever warns, whatever its stacklevel
        ours = frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "nrinv"
        if ours and str(message) not in shown:
            shown.add(str(message))
            screen.complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


# ----------------------------------------------------------------------------------------------------------------- commands


def each(screen, jobs, read, work, *, batch_size=1, alike=None):
    """Do `work` on batches [(job, what has been read)] of the jobs.

    read(job): what the work takes of one.  alike(item): batches hold items for which this is the same.
    Of several jobs, those that fail are reported by name, the others go on, and the command ends with exit code 1.
    """
    failed, batch, counted = [], [], itertools.count(1)

    def named(job):
        return job.source.name if len(jobs) == 1 else f"{next(counted)}/{len(jobs)} {job.source.name}"

    def attempt(job, function, *args):
        try:
            return function(*args)
        except (typer.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if len(jobs) == 1:
                raise
            if screen.debug:
                traceback.print_exc()
            screen.complain(f"{job.source}: {explain(error)}")
            failed.append(job)
        return None

    def flush():
        together, batch[:] = list(batch), []
        if len(together) > 1:
            try:
                return work(together, f"{len(together)} of {len(jobs)} files")
            except (typer.Exit, BrokenPipeError):
                raise
            except Exception:  # whose fault it is shows when each is alone
                pass
        for one in together:
            attempt(one[0], work, [one], named(one[0]))

    for job in jobs:
        item = attempt(job, read, job)
        if item is None:
            continue
        if batch and alike is not None and alike(batch[0][1]) != alike(item):
            flush()
        batch.append((job, item))
        if len(batch) == batch_size:
            flush()
    flush()
    if failed:
        screen.complain(f"{len(failed)} of {len(jobs)} failed")
        raise typer.Exit(1)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary; errors and warnings only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error was raised (or set NRINV_TRACEBACK=1).")]


def command(function):
    """A command of the program.

    `screen` of its arguments is a `Screen`, made from --quiet and --debug; `drawing` is a `Drawing`, given by its options.
    What goes wrong becomes one line and an exit code.
    """
    options = dict(inspect.signature(function).parameters)
    shared = inspect.signature(Drawing).parameters if options.pop("drawing", None) else {}
    del options["screen"]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("debug", Debug))
    ]

    @app.command()
    @functools.wraps(function)
    def run(**given):
        screen = Screen(given.pop("quiet"), given.pop("debug") or os.environ.get("NRINV_TRACEBACK", "0") not in ("", "0"))
        if shared:
            given["drawing"] = Drawing(**{name: given.pop(name) for name in shared})
        with _failing_in_lines(screen.debug), _warnings_in_lines(screen):
            with screen.running():
                function(screen=screen, **given)

    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*options.values(), *shared.values())]
    run.__signature__ = inspect.Signature([*own, *common])
    return run


@contextmanager
def _failing_in_lines(debug):
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE:
            raise typer.Exit(1) from None  # nobody reads any more
        if debug:
            raise
        complain(explain(error))
        raise typer.Exit(1) from None


def _print_version(asked):
    if asked:
        say(f"nrinv {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
):
    pass
