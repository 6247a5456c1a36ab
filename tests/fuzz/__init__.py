"""Fuzzing: what bytes do to a server, and what a broken server's answers do to the SDK. `python -m tests.fuzz` runs it.

Every module that makes inputs gives them to the same target, and every answer goes to the same oracle.
"""
