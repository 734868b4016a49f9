"""The web server: HTTP, TLS and access to the exporter's pages."""
