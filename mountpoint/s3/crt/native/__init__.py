"""GETs without the interpreter, through the CRT's own C functions.

`symbols` finds the functions in the loaded awscrt, and `_crt.pxd` has the layouts of its structs.
`_requests` is the interface to Python. `_sending` sends a GET: a small one past the CRT's S3
client (`_http`), on one of `_connections`, which `connections` opens; another one by the S3 client
(`_gets`). `_gets` judges the usual answer, with the help of `_answers`. `plane` settles the GETs
that have ended, and judges all other answers. `_templates` has the GETs of reads in the lane.
"""
