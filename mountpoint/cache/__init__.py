"""The data cache: blocks of objects on a local disk, or on one that several machines share.

`block_cache` is what the rest of the program uses. `_files` reads and writes one block file,
`identity` names it, `directory` has all of them, `eviction` keeps them within the limit, and
`filling` writes blocks behind the readers' backs.
"""
