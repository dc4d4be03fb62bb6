"""Mount an S3 bucket as a Linux file system."""

__version__ = "0.1.0"
