"""What a mount tells others of itself: OpenTelemetry, Prometheus, lines in its log, health."""
