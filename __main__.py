"""`python FOLDER`: the command line of the library in `qarvd/`."""

from qarvd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
