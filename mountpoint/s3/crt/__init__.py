"""`ObjectClient` over the AWS Common Runtime (CRT): `client` sends, `exchange` gets the answers."""
