"""GETs without the interpreter, through the CRT's own C functions.

`symbols` finds the functions in the loaded awscrt, and `_crt.pxd` has the layouts of its structs.
`_gets` sends a GET and judges the usual answer, with the help of `_answers`; `_requests` is its
interface to Python. `plane` settles the GETs that have ended, and judges all other answers. Small
GETs go past the CRT's S3 client (`_http`), on `_connections`, which `connections` opens.
"""
