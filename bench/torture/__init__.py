"""What mutated engines, hostile clients and too little of everything do to the exporter, with figures."""
