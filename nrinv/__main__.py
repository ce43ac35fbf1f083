"""The command `nrinv`, also as `python -m nrinv`."""

import os
import sys


def _run():
    try:
        from .cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "nrinv":
            raise
        sys.exit(f"nrinv: the command line needs {error.name}: pip install 'nrinv[cli]'")
    app()


def main():
    """Run the command line; what cannot be written to stdout any more ends it without a traceback."""
    try:
        _run()
    except KeyboardInterrupt:  # while libraries are imported, or options read
        print("nrinv: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
