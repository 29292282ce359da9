"""Leaves politely, but leaves a child behind that holds its pipes open."""

import subprocess
import sys

from wire import serve, text

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
serve({"child": lambda r: text(str(child.pid))})
