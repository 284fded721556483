"""The command `taskrunner`: parses arguments, calls the library, shows events. No logic lives here."""
