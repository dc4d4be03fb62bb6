"""S3: what the rest of the program may know of it (`client`), and how it is done."""
