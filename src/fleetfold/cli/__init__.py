"""The command line: `main` is its table of contents, one file a command or family of commands."""
