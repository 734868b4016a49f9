"""Push to an OpenTelemetry collector. Imported only where it is asked for."""
