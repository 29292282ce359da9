"""Ignores the end of its stdin and SIGTERM, and so does its child, which also left the process group."""

import signal
import subprocess
import sys
import time

from wire import serve, text

signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
serve({"child": lambda r: text(str(child.pid))})
time.sleep(600)
