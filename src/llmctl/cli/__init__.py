"""The command line. Nothing in the rest of the package imports from here."""
