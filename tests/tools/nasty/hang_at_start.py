"""Never says a word, and does not notice that its stdin is closed."""

import time

time.sleep(600)
