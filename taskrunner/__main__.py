"""`python -m taskrunner` is the command `taskrunner`."""

from taskrunner.cli.main import command

if __name__ == "__main__":
    command()
