"""File system semantics over S3: names, inodes, open files, attributes, directories, renames.

`filesystem` has one method per FUSE operation; `mount/build` joins its parts. Open files are
`OpenFile`s (`handles`): `reads` has those that are read, `writes` those that are written, and
`open` opens both. A new file attribute goes into `posix_metadata`.
"""
