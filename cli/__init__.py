"""The command lines. Nothing here imports torch, so that `--help` answers at once.

`declare` has the flags' declaration, `parser` their spelling and errors, `process` exit codes. The
other modules declare the flags of one command each, as a dataclass. To add a flag, add a field.
"""
