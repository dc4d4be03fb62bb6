"""`ObjectClient` over the AWS Common Runtime (CRT).

`client` sends requests, `signing` signs them, `exchange` gets the answers. `native`: GETs without
the interpreter.
"""
