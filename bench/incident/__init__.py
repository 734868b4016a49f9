"""An incident in a fleet, for the dashboards: 36 simulated engines behind 4 exporters, in virtual time.

The clocks of this process are replaced at import, before anything of the exporter takes one.
"""

from incident import virtual

virtual.install()
