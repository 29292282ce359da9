"""The dashboard: what stands in the store and what the operations tell, as pages for a browser on this machine.

Not a second implementation and not a place where anything is kept: pages read the store and a derived index, and
everything that changes something is an operation of the table, offered as a form. Works offline: one style sheet, one
script, both from here.
"""
