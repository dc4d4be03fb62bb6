"""The data caches: blocks of objects on a disk, which machines may share, or in another bucket.

`block_cache` is what the rest of the program uses. `blocks` reads and writes one block file,
`identity` names it, `directory` has all of them, `eviction` keeps them within the limit, and
`filling` writes blocks behind the readers' backs. `shared` has the cache in a bucket.
"""
