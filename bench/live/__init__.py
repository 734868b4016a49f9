"""Live acceptance: real engines with tiny random models, and what the exporter and its proxy say of them."""
