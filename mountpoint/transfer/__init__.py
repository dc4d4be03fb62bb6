"""Limits that all transfers share: memory budget, bytes in flight, hedging, parallel work."""
