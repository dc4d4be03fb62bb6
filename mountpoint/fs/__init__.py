"""File system semantics over S3: names, inodes, open files, attributes, directories, renames.

`filesystem` has one method per FUSE operation. A new kind of handle goes into `handles`; `writes`
has the code that changes files. A new file attribute goes into `posix_metadata`.
"""
