"""Directory contents: listings, lookups of names, and prefetching for both.

`tree` defines which keys are files and directories. `directory` lists one directory: `page_chain`
requests its pages, `pages` says what a page proves, and `split_points` guesses where to list ahead.
`cache` keeps listed names. `single_lookup` asks S3 for one name, `batch_lookup` for many with one
LIST; `fs/resolver` uses these three. `prefetch` lists ahead of tree walks, which `walk_detector`
recognises; `flat` splits their LISTs.
"""
