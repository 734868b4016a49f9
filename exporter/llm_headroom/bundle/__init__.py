"""What is shipped for the operators of engines: alerts, dashboards and Kubernetes objects, each from one source."""
