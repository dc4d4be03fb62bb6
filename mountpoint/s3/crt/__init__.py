"""`ObjectClient` over the AWS Common Runtime."""
