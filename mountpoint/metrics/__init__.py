"""Counters and durations of a mount's work, and their export.

`counters` holds plain counters, `recorder` durations and failures per operation, request and
program, `_histogram` the histograms. A new metric needs its name in `counters` or `recorder`, and
its export in `export/families`. Prometheus gets all metrics, OpenTelemetry and the log only those
that AWS's mount-s3 has, under its names (`export/exports`).
"""
