"""`python -m reproduce`: the command line."""

from reproduce.cli.commands import main

if __name__ == "__main__":
    main()
