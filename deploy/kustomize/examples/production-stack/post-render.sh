#!/bin/sh
# Helm's post-renderer: manifests in, manifests with sidecars out.
set -eu
cd "$(dirname "$0")"
trap 'rm -f engines/rendered.yaml' EXIT
cat >engines/rendered.yaml
kubectl kustomize .
