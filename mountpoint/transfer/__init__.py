"""Limits that all transfers share: memory budget, bytes in flight, hedging, parallel work.

And the bodies of uploads that a data cache may keep.
"""
