"""S3 as a file system: names, inodes, open files, attributes, directories, renames.

`filesystem` has a method per operation; `fs.writes` changes files.
"""
