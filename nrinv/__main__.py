"""The command `nrinv`, also as `python -m nrinv`."""

import sys


def main():
    try:
        from .cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"nrinv: the command line needs {error.name}: pip install 'nrinv[cli]'")
    app()


if __name__ == "__main__":
    main()
