"""Switches a process to UTF-8 before its command runs."""

import codecs
import os
import sys


def use_utf8() -> None:
    """Restart Python in UTF-8 mode in a locale that has only ASCII characters.

    Python uses this mode by itself in the locales C and POSIX, unless PYTHONUTF8 is 0. Without it
    arguments that aren't ASCII are not valid text, and file names can't be printed.
    """
    if sys.flags.utf8_mode or not sys.executable:
        return
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
