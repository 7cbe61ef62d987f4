"""What a process of gptlit's own does ahead of its command: it takes UTF-8."""

import codecs
import os
import sys


def use_utf8() -> None:
    """Begin again in Python's UTF-8 mode, in a locale whose only characters are ASCII.

    Python takes this mode itself in the locales C and POSIX, unless it is told not to. Without it
    the words of the command line are no text, and names of files can't be printed.
    """
    if sys.flags.utf8_mode or not sys.executable:
        return
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
