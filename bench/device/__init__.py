"""What the exporter says of a GPU, held against what is so: memory of known sizes, work of known length.

`bench/device/run.sh` runs it; docs/hardware.md says how, and what was seen.
"""
