"""Takes the call and does not come back."""

import time

from wire import serve

serve({"wait": lambda r: time.sleep(600)})
