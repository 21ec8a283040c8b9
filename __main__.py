"""`python -m FOLDER` above this folder, or `python FOLDER`: the command line of the library in `qarvd/`.

In the folder above a checkout called `qarvd`, such as `custom_nodes`, Python takes the pack for the library.
"""

if __package__:
    from .qarvd.cli import main
else:
    from qarvd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
