"""`python -m taskrunner` is the command `taskrunner`."""

from taskrunner.cli.start import command

if __name__ == "__main__":
    command()
