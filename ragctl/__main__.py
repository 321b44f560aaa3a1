"""`python -m ragctl` is the console script."""

from ragctl.cli import main

if __name__ == "__main__":
    main()
