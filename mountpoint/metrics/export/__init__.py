"""Export of a mount's metrics and health: OpenTelemetry, Prometheus, log lines, health checks."""
