"""Between a client and a model: what an agent asks, answered with calls that are calls.

Not a web server (apps/gateway is) and not a model. The rule it protects: nothing half-read leaves this room. Text that
may turn out to be a call is held back until it is known, a call is checked against its tool's schema, and every change
of what the model wrote is told.
"""
